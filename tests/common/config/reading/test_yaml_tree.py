import pytest
from bevkd_common.config.reading.yaml_tree import MAX_CHARACTERS, Place, Problems, parse, plain, planted, render
from hypothesis import given, settings
from hypothesis import strategies as st


def problems(text: str) -> list[str]:
    with pytest.raises(Problems) as caught:
        parse(text, "r.yaml")
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3e2", 300.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("+3", 3),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("9223372036854775807", 2**63 - 1),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'3'", "3"),
        ('"true"', "true"),
        # Numbers, booleans and dates of YAML 1.1 that are text in YAML 1.2.
        ("no", "no"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("{a: [1, {b: }], '': 2}", {"a": [1, {"b": None}], "": 2}),
        ("- a\n- - b\n", ["a", ["b"]]),
        ("# only a comment\n", None),
        ("---\na: 1\n...\n", {"a": 1}),
    ],
)
def test_values_follow_yaml_1_2(text: str, value: object) -> None:
    read = plain(parse(text, "r.yaml"))
    assert read == value
    assert type(read) is type(value)


def test_a_node_remembers_the_line_of_its_key() -> None:
    root = parse("a: 1\nb:\n  c:\n    - 2\n    - 3\n", "r.yaml")
    assert isinstance(root.value, dict)
    inner = root.value["b"].value
    assert isinstance(inner, dict)
    items = inner["c"].value
    assert isinstance(items, list)
    assert [str(node.place) for node in (root, root.value["b"], inner["c"], items[1])] == [
        "r.yaml",
        "r.yaml, line 2",
        "r.yaml, line 3",
        "r.yaml, line 5",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "r.yaml, line 3: a: is written twice, first at r.yaml, line 1"),
        ("a: {b: 1, b: 2}", "r.yaml, line 1: a.b: is written twice, first at r.yaml, line 1"),
        ("a: &x 1", "r.yaml, line 1: a: the anchor &x is not allowed; write the value out"),
        ("a: 1\nb: [*x]", "r.yaml, line 2: b.0: an alias is not allowed; write the value out"),
        ("a: !!python/none x", "r.yaml, line 1: a: the tag tag:yaml.org,2002:python/none is not allowed"),
        ("a: !x [1]", "r.yaml, line 1: a: the tag !x is not allowed; a recipe holds plain values"),
        ("a: 1\n---\nb: 1", "r.yaml, line 2: a second document starts; a recipe is one document"),
        ("? [1]\n: 2", "r.yaml, line 1: a key must be a plain word"),
        ("a: .inf", "r.yaml, line 1: a: .inf is not a finite number"),
        ("a: -.INF", "r.yaml, line 1: a: -.INF is not a finite number"),
        ("a: .nan", "r.yaml, line 1: a: .nan is not a finite number"),
        ("a: 1e999", "r.yaml, line 1: a: 1e999 is not a finite number"),
        ("a: 9223372036854775808", "r.yaml, line 1: a: 9223372036854775808 does not fit into 64 bits"),
        (f"a: {'9' * 5000}", "r.yaml, line 1: a: 999999999999999999999... does not fit into 64 bits"),
        ('a: "\\ud800"', "r.yaml, line 1: a: holds half of a surrogate pair, which is no text"),
        ('a: "\\U00110000"', "r.yaml: is not valid YAML: an escape such as \\U00110000 is no character"),
        ('a: "\\Uffffffff"', "r.yaml: is not valid YAML: an escape such as \\U00110000 is no character"),
        ("a:\n\tb: 1", "r.yaml, line 2: is not valid YAML: a tab where only spaces may stand"),
        ("a: [1", "r.yaml, line 1: is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: b: c", "r.yaml, line 1: is not valid YAML: mapping values are not allowed here"),
        ("a: \x00", "r.yaml: is not text: it holds the character #x0000"),
        ("[" * 40 + "]" * 40, "r.yaml, line 1: nests deeper than 32 levels"),
        ("[" * 100_000, "r.yaml, line 1: nests deeper than 32 levels"),
        ("a" * (MAX_CHARACTERS + 1), f"r.yaml: is larger than {MAX_CHARACTERS} characters, which no recipe is"),
    ],
)
def test_what_a_recipe_may_not_say(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert found.startswith(problem)


def test_a_billion_laughs_are_refused_without_expanding_them() -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12)]
    found = problems("l0: &l0 ha\n" + "\n".join(levels))
    assert len(found) == 1 + 11 * 11


def test_all_problems_are_found_in_the_order_of_the_text() -> None:
    assert problems("a: .inf\nb: !x 1\nb: 2\nc: *d\n") == [
        "r.yaml, line 1: a: .inf is not a finite number",
        "r.yaml, line 2: b: the tag !x is not allowed; a recipe holds plain values",
        "r.yaml, line 3: b: is written twice, first at r.yaml, line 2",
        "r.yaml, line 4: c: an alias is not allowed; write the value out",
    ]


PLAIN_DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]))
    | st.sampled_from(["1e-3", "no", "0o7", ".inf", "~", "", "010", "<<", "=", "true", "1:30", "- x", "#", "a: b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_1.~", max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(PLAIN_DATA)
def test_what_is_rendered_reads_back(data: object) -> None:
    assert plain(parse(render(data), "r.yaml")) == data


def test_data_planted_in_one_place_reads_back() -> None:
    data = {"a": [1, {"b": None}], "c": "x"}
    assert plain(planted(data, Place("here"))) == data
