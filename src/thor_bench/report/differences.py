"""What the optimizers of a comparison were set to, told by what is not their default."""

from collections.abc import Callable, Mapping, Sequence

from thor_bench.optimizers.registry import OPTIMIZERS
from thor_bench.optimizers.settings import override, to_values
from thor_bench.records.config import RunConfig, SettingValue
from thor_bench.records.reading import Run
from thor_bench.report.summary import group_by_optimizer
from thor_bench.report.tables import TextTable


def differences_table(runs: Sequence[Run]) -> TextTable:
    """Returns horizon, batch and the settings that are not the optimizer's own defaults."""
    return _table(runs, "set", lambda config: written(_changed(config)) or "nothing: its defaults")


def settings_table(runs: Sequence[Run]) -> TextTable:
    """Returns every setting."""
    return _table(runs, "settings", lambda config: written(config.settings))


def _table(runs: Sequence[Run], heading: str, tell: Callable[[RunConfig], str]) -> TextTable:
    firsts = [group[0].config for group in group_by_optimizer(runs).values()]
    return TextTable.of(
        {
            "optimizer": one.optimizer,
            "epochs": f"{one.epochs:g}",
            "batch": str(one.batch_size or "its own"),
            heading: tell(one),
        }
        for one in firsts
    )


def _changed(config: RunConfig) -> dict[str, SettingValue]:
    """Returns the settings that ``--preset defaults`` would not have."""
    peer = OPTIMIZERS.get(config.optimizer)
    if peer is None:  # of another version
        return dict(config.settings)
    usual = to_values(override(peer.settings, peer.untuned.split()))
    missing = object()
    return {k: value for k, value in config.settings.items() if usual.get(k, missing) != value}


def written(settings: Mapping[str, SettingValue]) -> str:
    """Returns settings as ``--set`` takes them."""
    return ", ".join(f"{key}={_text(value)}" for key, value in settings.items())


def _text(value: SettingValue) -> str:
    """Returns a value as ``--set`` takes it."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
