"""What optimizers need that an installation may lack, so that all others run without it."""

import torch


def lacks_muon() -> str | None:
    """Says what Muon needs where torch is too old for it; None where it is there."""
    if hasattr(torch.optim, "Muon"):
        return None
    return f"needs torch >= 2.9 (this is {torch.__version__})"
