"""What no file of the repository may say."""

import re

from tests.contracts.tree import PACKAGE, ROOT, text_files

# Written in pieces, so that this file passes its own test.
FOLDERS = "|".join(["home", "root", "work", "tmp", "Users"])
MACHINE_PATHS = re.compile(rf"(?<![\w.:/-])/(?:{FOLDERS})/\w")
UNFINISHED = re.compile("|".join([r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bTB" + r"D\b"]))
UNWRITTEN = re.compile("raise NotImplemented" + "Error")


def lines_with(pattern, files):
    return [
        (str(path.relative_to(ROOT)), line.strip())
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line)
    ]


def test_no_path_of_one_machine():
    assert lines_with(MACHINE_PATHS, text_files()) == []


def test_nothing_is_left_for_later():
    package = [path for path in text_files() if PACKAGE in path.parents]
    assert lines_with(UNFINISHED, text_files()) == []
    assert lines_with(UNWRITTEN, package) == []


def test_patterns_find_what_they_are_for():
    assert MACHINE_PATHS.search("open('" + "/home" + "/someone/x')")
    assert not MACHINE_PATHS.search("docs/work/x https://x.org/home/y ../root/z")
    assert UNFINISHED.search("# TO" + "DO: later")
