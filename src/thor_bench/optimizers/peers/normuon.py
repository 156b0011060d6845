"""NorMuon of pytorch_optimizer: Muon with its rows evened by a running average (Li et al. 2025)."""

from thor_bench.optimizers.peer import Peer
from thor_bench.optimizers.peers.muon import AUTHORS, MuonSettings, build

PEERS = (
    Peer(
        "normuon",
        "NorMuon: Muon with rows evened (pytorch-optimizer)",
        MuonSettings(momentum=0.95, row_decay=0.95, rest="adamw", rest_lr=3e-3),
        build,
        own="momentum",
        # zichongli5/NorMuon: "usage mirrors the original Muon", β2 = 0.95
        untuned=f"{AUTHORS} row_decay=0.95",
    ),
)
