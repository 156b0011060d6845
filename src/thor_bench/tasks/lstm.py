"""An LSTM on the text of Python's help topics, character by character."""

from torch import Tensor, nn

from thor_bench.tasks import text
from thor_bench.tasks.task import Task

_FEATURES, _STATE = 128, 256


class LSTM(nn.Module):
    """Predicts, at each position, the next symbol."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(symbols, _FEATURES)
        self.memory = nn.LSTM(_FEATURES, _STATE, batch_first=True)
        self.head = nn.Linear(_STATE, symbols)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps symbols ``[N, T]`` to logits ``[N, T, symbols]``."""
        logits: Tensor = self.head(self.memory(self.symbols(inputs))[0])
        return logits


def build_model() -> nn.Module:
    """Returns the LSTM of one layer: 256 cells, 128 features of a character."""
    return LSTM(len(text.alphabet(text.read_text())))


LSTM_TEXT = Task(
    name="lstm",
    description="characters of Python's help topics, LSTM of 256 cells",
    input_summary="465 thousand characters in windows of 128, shipped with Python",
    load=text.load,
    model=build_model,
    loss=text.CHARACTERS.loss,
    loss_reduction="positions_mean",
    metric=text.CROSS_ENTROPY,
    target=1.48,
    epochs=4,
    batch_size=32,
)
