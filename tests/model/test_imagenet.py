"""The names of ImageNet's classes are in the order in which networks have them."""

from pipeline.model.imagenet import (
    IMAGENET_CLASSES,
    are_imagenet_classes,
    imagenet_class_names,
)


def test_names_are_in_the_order_of_the_logits():
    names = imagenet_class_names()
    assert len(names) == len(set(names)) == IMAGENET_CLASSES
    known = {
        0: "tench",
        1: "goldfish",
        292: "tiger",
        698: "palace",
        985: "daisy",
        999: "toilet tissue",
    }
    assert {index: names[index] for index in known} == known
    # Two birds and machines of one name, and two swimsuits.
    assert (names[134], names[517]) == ("crane (bird)", "crane (machine)")
    assert (names[638], names[639]) == ("maillot", "tank suit")


def test_wordnet_ids_are_imagenet_s_classes_too():
    assert are_imagenet_classes(imagenet_class_names())
    assert not are_imagenet_classes(imagenet_class_names()[::-1])
    assert not are_imagenet_classes(tuple(f"n{index:08d}" for index in range(1000)))
    assert not are_imagenet_classes(())
