import re

from pipeline.reports import figures


def test_names_in_images_are_cut_to_their_room():
    names = [
        "short",
        "W" * 200,
        "two\nlines",
        "日本語",
        "",
        "a$b",
        "kept start " + "x" * 100 + " kept end",
    ]
    fit = [figures.fit_class_name(names, index, 100, 9) for index in range(len(names))]
    assert fit[0] == "short"
    assert fit[2:6] == ["two lines", "class 3", "class 4", "a$b"]
    assert re.fullmatch("W+…W+", fit[1])
    assert fit[6].startswith("kept")
    assert fit[6].endswith("end")
    assert all(figures.measure_text(figures.load_font(), text, 9) <= 100 for text in fit)
