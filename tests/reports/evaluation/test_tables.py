from dataclasses import replace

from pipeline.reports.evaluation.data import BatchReading, SpeedReading
from pipeline.reports.evaluation.tables import tabulate_speed

SPEED = SpeedReading(
    device="CPU: Old Faithful",
    processors=2,
    model_bytes=12_345_678,
    batches=(
        BatchReading(1, 1234, 0.00321, 0.0041, 0.000042, 310.4),
        BatchReading(32, 20, 0.0256, 1.5, 2.0, 1234.4),
    ),
    tensor_bytes=57_500_000,
    resident_bytes=None,
)


def test_table_is_for_people():
    assert tabulate_speed(SPEED).rows == [
        ("device", "CPU: Old Faithful; 2 processors"),
        ("latency, 1 image a call: p50, p95, p99 of 1,234 calls", "3.2 ms, 4.1 ms, 0.042 ms"),
        ("rate, 1 image a call", "310 images/s"),
        (
            "latency, 32 images a call: p50, p95, p99 of 20 calls",
            "25.6 ms, 1,500.0 ms, 2,000.0 ms",
        ),
        ("rate, 32 images a call", "1,234 images/s"),
        ("model file", "12.3 MB"),
        ("peak memory that a call of 32 images adds: tensors", "57.5 MB"),
        ("peak memory that a call of 32 images adds: the whole process", "not known here"),
    ]


def test_small_numbers_are_not_rounded_to_nothing():
    slow = replace(
        SPEED,
        processors=1,
        model_bytes=12_345,
        batches=(replace(SPEED.batches[0], images_per_second=0.834),),
    )
    rows = dict(tabulate_speed(replace(slow, tensor_bytes=0)).rows)
    assert rows["device"] == "CPU: Old Faithful; 1 processor"
    assert rows["rate, 1 image a call"] == "0.83 images/s"
    assert rows["model file"] == "12.3 kB"
    assert rows["peak memory that a call of 1 image adds: tensors"] == "0 kB"
