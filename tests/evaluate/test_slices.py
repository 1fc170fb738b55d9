import numpy as np

from pipeline.evaluate.slices import find_slices, list_parent_folders, parse_number_column


def planted(images=2000):
    """Images that are wrong three times as often where they are dark."""
    rng = np.random.default_rng(0)
    brightness, site = rng.uniform(0, 255, images), rng.choice(["north", "south"], images)
    return rng.random(images) < np.where(brightness < 60, 0.3, 0.1), brightness, site.tolist()


def test_the_planted_slice_comes_first_and_is_clearly_worse():
    wrong, brightness, site = planted()
    found = find_slices(wrong, {"site": site, "brightness": brightness})
    assert found[0].attribute == "brightness"
    assert float(found[0].value.split(" to ")[1]) < 70
    assert found[0].interval[0] > found[0].others_top1_error
    assert not any(
        item.interval[0] > item.others_top1_error
        for item in found[1:]
        if item.attribute == "brightness"
    )
    assert len(found) == 2 + 4


def test_every_image_is_in_one_slice_of_each_attribute():
    wrong, brightness, site = planted()
    for attribute, values in {
        "site": site,
        "brightness": brightness,
        "many equal": np.round(brightness / 100),
    }.items():
        found = find_slices(wrong, {attribute: values})
        assert sum(item.images for item in found) == len(wrong)
        assert round(sum(item.images * item.top1_error for item in found)) == np.count_nonzero(
            wrong
        )
        for item in found:
            rest = (np.count_nonzero(wrong) - item.images * item.top1_error) / (
                len(wrong) - item.images
            )
            assert abs(item.others_top1_error - rest) < 1e-9


def test_a_few_unlucky_images_do_not_come_first():
    wrong = np.array([True] * 3 + [True] * 60 + [False] * 40 + [False] * 97)
    names = ["few"] * 3 + ["many"] * 100 + ["good"] * 97
    assert [item.value for item in find_slices(wrong, {"group": names})] == ["many", "few", "good"]


def test_what_says_nothing_is_left_out():
    wrong = np.zeros(40, bool)
    wrong[3] = True
    names = [str(index) for index in range(40)]
    assert (
        find_slices(wrong, {"one value": ["x"] * 40, "a name each": names, "constant": np.ones(40)})
        == []
    )


def test_columns_of_text_are_numbers_where_they_look_like_many():
    assert parse_number_column([str(value) for value in range(12)]).tolist() == list(range(12))
    for texts in (
        ["1", "2"] * 10,
        ["1", "x", *map(str, range(20))],
        ["nan", *map(str, range(20))],
        ["1e308", *map(str, range(20))],
    ):
        assert parse_number_column(texts) == texts


def test_empty_cells_of_numbers_are_a_slice_of_their_own():
    numbers = parse_number_column(
        ["" if index % 5 == 0 else str(20240000 + index) for index in range(100)]
    )
    found = find_slices(np.arange(100) % 5 == 0, {"day": numbers})
    assert found[0].value == "(empty)"
    assert (found[0].images, found[0].top1_error) == (20, 1.0)
    assert [item.images for item in found[1:]] == [20] * 4
    assert len({item.value for item in found}) == 5


def test_empty_and_strange_names_are_values():
    wrong = np.array([True, False] * 20)
    found = find_slices(wrong, {"column": ["", "<b>\n"] * 20})
    assert [item.value for item in found] == ["(empty)", "<b>\n"]


def test_folders_are_those_of_the_names():
    assert list_parent_folders(["a/b/c.jpg", "d.png"]) == ["a/b", "."]
