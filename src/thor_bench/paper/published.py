"""What the paper reports, as printed: beside it stands what was measured here."""

from thor_bench.report.tables import TextTable
from torch_thor import SplitCurves

TABLE_1 = TextTable(
    ("size", "1", "16", "32", "64", "128", "256", "512", "1024", "2048"),
    (
        ("factors with L < 1 % (of 54)", "4", "4", "5", "9", "13", "23", "32", "46", "48"),
        ("time, µs", "35", "59", "83", "121", "212", "534", "1418", "3738", "9824"),
        ("normalized loss", ".0741", ".0741", ".0926", ".1667", ".2407", ".4259", ".5926",
         ".8519", ".8889"),
        ("normalized speed", "1", ".6014", ".4276", ".2939", ".1669", ".0664", ".0250", ".0095",
         ".0036"),
    ),
)  # fmt: skip

TABLE_2 = TextTable(
    ("ResNet-18, CIFAR-10, one V100", "best accuracy, %", "s/epoch", "s to 93 %", "s to 94 %",
     "s to 95 %"),
    (
        ("SGD", "94.31", "13.29", "809.5", "889.2", "–"),
        ("KFAC", "94.42", "65.01", "1704.3", "4032.4", "–"),
        ("THOR", "95.00", "17.64", "656.8", "1139.1", "1555.5"),
        ("THOR_stop", "95.09", "17.16", "622.9", "1092.2", "1350.7"),
        ("THOR_NT", "94.40", "18.09", "671.0", "1155.3", "–"),
    ),
)  # fmt: skip

ABLATION = TextTable(
    ("time saved against KFAC, 90 epochs", "%"),
    (("trace rule (tr)", "65"), ("growing intervals (fre)", "48.5"), ("split (sp)", "40.5")),
)

TABLE_4 = TextTable(
    ("ResNet-50, ImageNet, 8 Ascend 910", "accuracy, %", "s/epoch", "s to 74.9 %", "s to 75.9 %"),
    (
        ("SGD", "76.04", "90.00", "6569.9", "7021.0"),
        ("THOR", "75.92", "102.15", "3674.9", "4083.2"),
    ),
)

TABLE_5 = TextTable(
    ("ResNet-50, ImageNet, minutes to 75.9 %", "hardware", "batch", "minutes"),
    (
        ("THOR", "8 Ascend 910", "256", "66.7"),
        ("THOR", "128 Ascend 910", "4096", "4.1"),
        ("THOR", "256 Ascend 910", "8192", "2.7"),
        ("SP-NGD", "128 V100", "4096", "32.5"),
        ("SP-NGD", "256 V100", "8192", "16.9"),
    ),
)


def number(table: TextTable, row: str, column: str) -> float:
    """Returns a printed number; the first column names the row."""
    cells = next(cells for cells in table.rows if cells[0] == row)
    return float(cells[table.headings.index(column)])


def split_curves() -> SplitCurves:
    """Returns the curves of Table 1: ResNet-50 on an Ascend 910."""
    *_, kept, speed = ([float(cell) for cell in row[1:]] for row in TABLE_1.rows)
    return SplitCurves(tuple(int(size) for size in TABLE_1.headings[1:]), tuple(kept), tuple(speed))


def times_of_thor() -> list[tuple[int, int, float]]:
    """Returns devices, batch and minutes of THOR's rows of Table 5."""
    return [
        (int(hardware.split()[0]), int(batch), float(minutes))
        for name, hardware, batch, minutes in TABLE_5.rows
        if name == "THOR"
    ]
