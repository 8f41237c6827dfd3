from waver.data.ledger import describe_failures, group_failures


def test_equal_causes_are_one_line_with_the_number_and_some_names():
    failed = [("a", "empty", "the file has 0 bytes"), *((f"c{i}", "missing", "no such file") for i in range(5))]
    failures = group_failures(failed)
    assert {cause: len(names) for cause, names in failures.items()} == {
        "missing: no such file": 5,
        "empty: the file has 0 bytes": 1,
    }
    assert describe_failures(failures) == [
        "5 x missing: no such file (c0, c1, c2 and 2 more)",
        "1 x empty: the file has 0 bytes (a)",
    ]
    assert describe_failures(failures, max_causes=1)[1:] == ["and 1 other causes"]
