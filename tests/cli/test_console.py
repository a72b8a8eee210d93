"""What commands print with."""

import json
import math

import pytest

from ditscope.cli.console import messages, print_json, print_table, progress, results


def test_json_is_strict(capsys):
    print_json({"name": "Ü", "steps": [1, 2]})
    assert json.loads(capsys.readouterr().out) == {"name": "Ü", "steps": [1, 2]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"loss": math.nan})


def test_table_aligns_numbers_and_obeys_no_text(capsys):
    print_table(["name", "size"], [["[red]a[/]", 5], ["b\x1b[31m", 1234]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["name", "size"],
        ["[red]a[/]", "5"],
        ["b\\u001b[31m", "1234"],
    ]
    assert len({len(line.rstrip()) for line in lines}) == 1  # flush right


def test_rows_are_not_folded_for_a_pipe(capsys):
    print_table(["name", "note"], [["a" * 70, "b " * 70]])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_table_may_be_empty(capsys):
    print_table(["name", "size"], [])
    assert capsys.readouterr().out.split() == ["name", "size"]


def test_results_and_messages_do_not_mix(capsys):
    results().print("[b]result[/]")
    messages().print("note")
    assert capsys.readouterr() == ("[b]result[/]\n", "note\n")


def test_progress_is_silent_without_a_terminal(capsys):
    with progress() as bar:
        for _ in bar.track(range(3), description="sampling"):
            pass
    assert capsys.readouterr() == ("", "")
