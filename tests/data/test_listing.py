"""Lists of images and of classes, and every one that is not right."""

import pytest
from helpers import make_folder

from usl import InputError
from usl.data.datasets import open_dataset
from usl.data.listing import read_image_list, read_subset

NAMES = ["a-b/9.png", "a/10.png", "a/sub/1.png", "a/2.JPEG", "b/x.jpg"]
# As ImageFolder: by class, then by folder, then by file.
ORDERED = ("a/10.png", "a/2.JPEG", "a/sub/1.png", "a-b/9.png", "b/x.jpg")


def written(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_list_has_the_order_and_the_labels_of_imagefolder(tmp_path):
    path = written(tmp_path / "names.txt", "\n".join(NAMES) + "\n\n")
    listing = read_image_list(path)
    assert listing.paths == ORDERED and listing.classes == ("a", "a-b", "b")
    assert listing.labels == (0, 0, 0, 1, 2)
    assert listing.remarks == (f"{path}: sorted, as torchvision orders images",)
    # As `find .` writes them, and with slashes too many.
    text = ".\n./" + "\r\n./".join(ORDERED).replace("a/10", "a//10").replace("x.jpg", "./x.jpg")
    again = read_image_list(written(tmp_path / "sorted.txt", text))
    assert again.paths == ORDERED and again.remarks == ()
    # A folder of these files has the same order.
    make_folder(tmp_path, {name: ("RGB", (9, 9)) for name in NAMES})
    found = open_dataset("imagenet", tmp_path)
    assert found.paths == ORDERED and found.labels.tolist() == [0, 0, 0, 1, 2]


def test_images_without_classes(tmp_path):
    listing = read_image_list(written(tmp_path / "names.txt", "b.png\na.png"))
    assert listing.paths == ("a.png", "b.png") and listing.labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a/1.png\n../etc/1.png",
            r"line 2 of .*, '../etc/1.png', leads out of the folder of the im",
        ),
        ("a/../../1.png", "leads out of the folder"),
        ("/etc/1.png", "leads out of the folder"),
        ("a\\1.png", "leads out of the folder"),
        ("C:/1.png", "leads out of the folder"),
        ("Index,ImageID", "line 1 of .*, 'Index,ImageID', names no image .*; write class/file"),
        ("a/1.png\n\na/1.png", "line 3 of .*, 'a/1.png', is on line 1 too; name each image once"),
        ("train/a/1.png", "'train/a/1.png', begins with train; write class/file"),
        ("a/1.png\n2.png", "line 2 of .*, '2.png', has no class, and others have one"),
        ("\n", "names no images; write class/file, one a line"),
        ("a/1.png\na//1.png", "line 2 of .*, 'a/1.png', is on line 1 too"),
        ("a/\0.png", "holds a zero byte; write class/file"),
        (b"\xff\xfe\x00", "it is not UTF-8 text; give a list of names"),
    ],
)
def test_lists_that_are_not_right(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_image_list(written(tmp_path / "names.txt", text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot read .*no.txt: No such file or directory; give"):
        read_image_list(tmp_path / "no.txt")
    with pytest.raises(InputError, match="cannot read .*: Is a directory; give another"):
        read_subset(tmp_path)


def test_classes_to_keep(tmp_path):
    names = [f"{c}/1.png" for c in ("hot dog", "n01", "n02", "n03", "new", "new york")]
    listed = written(tmp_path / "names.txt", "\n".join(names))
    path = written(tmp_path / "classes.txt", "n02 tench, Tinca\n\nn01\tgoldfish\n")
    assert read_image_list(listed, read_subset(path)).classes == ("n01", "n02")
    # A name may have spaces, of which another has the first word.
    written(path, "new york\n hot dog\nnew shoes")
    assert read_image_list(listed, read_subset(path)).classes == ("hot dog", "new", "new york")
    with pytest.raises(InputError, match="names class n01 twice; name each once"):
        read_image_list(listed, read_subset(written(path, "n01 a\nn01 b")))
    with pytest.raises(InputError, match="names no classes; write one folder name a line"):
        read_subset(written(path, " \n"))


def test_a_subset_keeps_classes_of_both_splits_and_of_lists(tmp_path):
    files = {f"{c}/{i}.png": ("RGB", (9, 9)) for c in ("n1", "n2", "n3") for i in range(2)}
    for split in ("train", "val"):
        make_folder(tmp_path, files, split)
    (tmp_path / "val" / "n4").mkdir()
    subset = written(tmp_path / "s.txt", "n3\nn1")
    for split in ("train", "test"):
        found = open_dataset("imagenet100", tmp_path, split, subset=subset)
        assert found.classes == ("n1", "n3") and found.labels.tolist() == [0, 0, 1, 1]
        assert found.paths == ("n1/0.png", "n1/1.png", "n3/0.png", "n3/1.png")
    names = written(tmp_path / "names.txt", "n2/0.png\nn3/1.png\nn1/0.png")
    found = open_dataset("imagenet100", tmp_path, image_list=names, subset=subset)
    assert found.paths == ("n1/0.png", "n3/1.png") and found.labels.tolist() == [0, 1]
    with pytest.raises(
        InputError, match="class n5 and 1 more of `subset` has no folder in .*/train"
    ):
        open_dataset("imagenet100", tmp_path, subset=written(subset, "n5\nn1\nn6"))
    with pytest.raises(InputError, match="class n5 and 1 more of `subset` has no image in .*names"):
        open_dataset("imagenet100", tmp_path, image_list=names, subset=subset)


def test_a_list_of_images_that_are_there_or_not(tmp_path):
    make_folder(tmp_path / "there", {"a/1.png": ("RGB", (9, 9)), "a/2.png": ("RGB", (9, 9))})
    names = written(tmp_path / "names.txt", "a/2.png")
    there = open_dataset("folder", tmp_path / "there", image_list=names)
    assert there.paths == ("a/2.png",) and there.present
    assert there.picture(0).shape == (9, 9, 3)
    absent = open_dataset("folder", tmp_path / "nowhere", image_list=names)
    assert not absent.present and absent.picture(0) is None
    assert absent.fingerprint() != there.fingerprint()
    with pytest.raises(
        InputError, match="there are no images in .*train, only their names .`image"
    ):
        absent.each([0], lambda picture: picture)
    # A list that names files that are not there.
    message = "names.txt .`image_list`. names a/3.png and 1 more, not in .*train; mend the list"
    with pytest.raises(InputError, match=message):
        open_dataset("folder", tmp_path / "there", image_list=written(names, "a/3.png\na/4.png"))


def test_both_splits_of_a_list_have_its_classes(tmp_path):
    files = {f"{c}/{i}.png": ("RGB", (9, 9)) for c in ("n1", "n2", "n3") for i in range(2)}
    for split in ("train", "val"):
        make_folder(tmp_path, files, split)
    names = written(tmp_path / "names.txt", "n2/0.png\nn3/1.png")
    train, test = (open_dataset("folder", tmp_path, s, image_list=names) for s in ("train", "test"))
    assert train.classes == test.classes == ("n2", "n3")
    assert train.labels.tolist() == [0, 1] and test.labels.tolist() == [0, 0, 1, 1]
    flat = written(tmp_path / "flat.txt", "1.png")
    with pytest.raises(InputError, match="flat.txt has no classes, so `subset` keeps none; write"):
        open_dataset("folder", tmp_path, image_list=flat, subset=written(tmp_path / "s", "n1"))


def test_only_folders_take_lists(tmp_path):
    with pytest.raises(
        InputError, match="`dataset` digits takes no `image_list`; choose one of im"
    ):
        open_dataset("digits", "", image_list=tmp_path)
    with pytest.raises(InputError, match="`dataset` digits takes no `subset`"):
        open_dataset("digits", "", subset=tmp_path)
