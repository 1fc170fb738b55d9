from pipeline.data.names import natural_sort_key


def test_numbers_in_names_sort_as_numbers():
    assert sorted(["10", "9", "b2", "b10", "B3", "a"], key=natural_sort_key) == [
        "9",
        "10",
        "a",
        "b2",
        "B3",
        "b10",
    ]
