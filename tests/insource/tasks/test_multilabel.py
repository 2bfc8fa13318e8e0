"""Several labels a row: one recipe key, from the rows over the constraint to the report."""

import csv
import json
import random
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compare.systems import linear_baseline
from data_prep.report import console
from insource.backends.wire.json_schema import restrict_keywords, unwrap_answer, wrap_in_object
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.schema.source import SPLITS
from insource.stats import metric_stats
from insource.system import atomic_files
from insource.tasks import format_metrics, multilabel
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from insource.tracking.run import Run
from tests.data_prep.test_data_faults import prepared, put
from tests.data_prep.test_label_identity import TOPICS, texts
from tests.helpers import commands
from tests.helpers.grammars import matches

LABELS = {"late": "A parcel that is late", 'to"rn': "", "réclamé": ""}
SPEC = multilabel.Spec("Name the topics.", LABELS, may_be_empty=True)
STRICT = multilabel.Spec("Name the topics.", LABELS, may_be_empty=False)
TASK = "{kind: classification, instruction: Name all topics of it., labels_per_row: many}"
SETS = st.sets(st.sampled_from(list(LABELS)))
ROWS = st.lists(st.tuples(SETS, st.one_of(st.none(), SETS)), min_size=1, max_size=30)


def canonical(labels: Any) -> list[str]:
    return [label for label in LABELS if label in labels]


def sets_of(count: int) -> list[list[str]]:
    """Sets of three labels, none and all among them, in no order of their own."""
    rng = random.Random(7)
    return [rng.sample(["late", "torn", "refund"], rng.choice([0, 1, 1, 2, 3])) for _ in range(count)]


def rows(count: int = 240) -> list[dict[str, Any]]:
    return [{"text": text, "label": labels} for text, labels in zip(texts(count), sets_of(count), strict=True)]


# The task.


def test_the_prompt_lists_the_labels_and_says_whether_none_may_apply() -> None:
    (turn,) = multilabel.messages(SPEC, {"text": "where is it?"})
    assert turn["content"] == (
        'Name the topics.\n\nLabels:\n- late: A parcel that is late\n- to"rn\n- réclamé\n\n'
        "Answer with one JSON array of all labels that apply, in the order above; [] if none applies.\n\n"
        "Input:\nwhere is it?"
    )
    assert "; at least one.\n\nInput" in multilabel.messages(STRICT, {"text": "x"})[0]["content"]


def test_the_grammar_takes_each_set_in_one_spelling_and_nothing_else() -> None:
    for spec in (SPEC, STRICT):
        grammar = multilabel.grammar(spec)
        for size in range(4):
            for chosen in combinations(LABELS, size):
                assert matches(grammar, multilabel.answer_text(spec, chosen)) is (size > 0 or spec.may_be_empty)
                others = [order for order in permutations(chosen) if order != chosen]
                assert not any(matches(grammar, multilabel.answer_text(spec, order)) for order in others)
        for text in ('["late", "late"]', '["other"]', '["late",]', '["late" "réclamé"]', '"late"', '["late"', "late"):
            assert not matches(grammar, text), text


def test_an_answer_is_read_in_any_order_and_spelling_and_anything_else_is_told_apart() -> None:
    assert multilabel.parse(SPEC, ' ["réclamé", "LATE", "late"]\n') == ParsedAnswer(["late", "réclamé"])
    assert multilabel.parse(SPEC, "[]") == ParsedAnswer([])
    assert multilabel.parse(STRICT, "[]") == ParsedAnswer(None, "wrong_schema")
    for text, problem in (
        ("late", "not_json"),
        ('["late"', "not_json"),
        ("[" * 5000, "not_json"),
        ('"late"', "wrong_schema"),
        ('{"late": true}', "wrong_schema"),
        ('["late", null]', "wrong_schema"),
        ('["late", "lost"]', "not_a_label"),
    ):
        assert multilabel.parse(SPEC, text) == ParsedAnswer(None, problem), text


def test_the_score_against_a_worked_example() -> None:
    targets = [["late", "réclamé"], ["late"], [], ["réclamé"]]
    answers = [ParsedAnswer(["late"]), ParsedAnswer(["late", 'to"rn']), ParsedAnswer([]), ParsedAnswer(None, TRUNCATED)]
    score = multilabel.score(SPEC, targets, answers)
    # Right 2, said 3, wanted 4. late 2 of 2 and 2; réclamé 0 of 0 and 2; torn said once, never wanted.
    assert score["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert score["macro_f1"] == pytest.approx((1 + 0 + 0) / 3)
    assert score["exact_match"] == 0.25 and score["invalid"] == {TRUNCATED: 1} and score["n"] == 4
    assert score["per_class"]["late"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "n": 2}
    assert score["per_class"]["réclamé"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 2}
    assert format_metrics(multilabel.main_metrics(score)) == "micro-F1 57.1%, macro-F1 33.3%, exact match 25.0%"
    assert multilabel.lowest_scoring(score)[-1] == ("late", 1.0)
    with pytest.raises(ValueError, match="no rows"):
        multilabel.score(SPEC, [], [])


@settings(deadline=None)
@given(ROWS)
def test_the_figures_are_scikit_learns(found: list[tuple[set[str], set[str] | None]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    targets = [canonical(wanted) for wanted, _ in found]
    answers = [ParsedAnswer(None, "not_json") if said is None else ParsedAnswer(canonical(said)) for _, said in found]
    tallies = multilabel.compute_metric_stats(SPEC, targets, answers)
    wanted, said = ([[int(label in row) for label in LABELS] for row in side] for side in
                    (targets, [one.value or [] for one in answers]))  # fmt: skip
    occurring = [at for at in range(3) if any(row[at] for row in wanted + said)]
    if occurring:
        given_ = (wanted, said)
        macro = f1_score(*given_, labels=occurring, average="macro", zero_division=0.0)
        assert tallies["micro_f1"].figure() == pytest.approx(f1_score(*given_, average="micro", zero_division=0.0))
        assert tallies["macro_f1"].figure() == pytest.approx(macro)
    if all(one.problem is None for one in answers):
        assert tallies["exact_match"].figure() == pytest.approx(accuracy_score(wanted, said))
    score = multilabel.score(SPEC, targets, answers)
    assert multilabel.main_metrics(score) == {name: one.figure() for name, one in tallies.items()}


def test_a_resample_of_label_sets_is_the_sum_of_its_rows() -> None:
    wanted, said = [{0}, {0, 1}, set(), {2}], [{0}, {1}, {2}, set()]
    whole = metric_stats.multilabel_macro_f1_metric(wanted, said, 3)
    drawn = [1, 1, 3]
    again = metric_stats.multilabel_macro_f1_metric([wanted[at] for at in drawn], [said[at] for at in drawn], 3)
    assert whole.at(drawn).figure() == pytest.approx(again.figure())


def test_a_closed_model_gets_an_object_with_the_array_and_is_read_without_it() -> None:
    schema = multilabel.output_schema(STRICT)
    sent = restrict_keywords(
        wrap_in_object(schema),
        frozenset({"type", "properties", "required", "additionalProperties", "items", "enum", "maxItems"}),
    )
    assert sent["properties"]["answer"]["items"]["enum"] == list(LABELS)
    assert "uniqueItems" not in sent["properties"]["answer"] and "no entry twice" in str(sent)
    answer = unwrap_answer(schema, '{"answer": ["réclamé", "late"]}')
    assert multilabel.parse(STRICT, answer) == ParsedAnswer(["late", "réclamé"])
    assert multilabel.parse(STRICT, unwrap_answer(schema, '{"answers": ["late"]}')) == ParsedAnswer(
        None, "wrong_schema"
    )


def test_answers_that_one_has_are_read_as_the_rows_are() -> None:
    read = multilabel.make_answer_reader(SPEC, True, ";")
    for given_ in (["réclamé", "Late"], '["réclamé", "Late"]', "réclamé; Late", "réclamé;late;"):
        assert read(given_) == '["late", "réclamé"]'
    assert read("") == "[]" and read("lost; late") == '["late", "lost"]'
    assert read("['late' 'réclamé']") == "['late' 'réclamé']"
    assert read("['late',\n 'réclamé']") == '["late", "réclamé"]'
    assert multilabel.make_answer_reader(SPEC, True)("late; réclamé") == "late; réclamé"
    assert multilabel.make_answer_reader(SPEC, False)(["Late"]) == '["Late"]'


# The linear model beside it.


def test_one_vs_rest_finds_each_label_by_itself() -> None:
    labels = ["late", "torn", "never", "always"]

    def row(text: str, *target: str) -> dict[str, Any]:
        return {"input": {"text": text}, "target": [*target, "always"]}

    train = [row("it came late", "late"), row("the box is torn", "torn"), row("late and torn", "late", "torn")] * 4
    train += [row("thank you very much"), row("have a good day")] * 4
    asked = [row(text) for text in ("late again and torn again", "thank you", "my parcel was late")]
    found = linear_baseline.predict_label_sets(train, asked, labels, may_be_empty=True)
    assert [json.loads(one.output) for one in found] == [["late", "torn", "always"], ["always"], ["late", "always"]]
    assert all(one.log_probability is not None and one.log_probability < 0 for one in found)
    bare = [{**one, "target": one["target"][:-1]} for one in train]
    for may_be_empty in (True, False):
        (one,) = linear_baseline.predict_label_sets(bare, [row("thank you")], labels[:3], may_be_empty)
        assert (one.output == "[]") is may_be_empty


# The rows.


def as_lists(folder: Path, found: list[dict[str, Any]]) -> str:
    put(folder / "rows.jsonl", found)
    return "{source: {path: rows.jsonl}}"


def as_json(folder: Path, found: list[dict[str, Any]]) -> str:
    put(folder / "rows.jsonl", [{**row, "label": json.dumps(row["label"])} for row in found])
    return "{source: {path: rows.jsonl}}"


def as_separated(folder: Path, found: list[dict[str, Any]]) -> str:
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((row["text"], " | ".join(row["label"])) for row in found)
    return '{source: {path: rows.csv}, columns: {label_separator: "|"}}'


def as_tables_write_lists(folder: Path, found: list[dict[str, Any]]) -> str:
    put(folder / "rows.jsonl", [{**row, "label": repr(row["label"])} for row in found])
    return "{source: {path: rows.jsonl}}"


@pytest.mark.parametrize("write", [as_lists, as_json, as_separated, as_tables_write_lists])
def test_labels_come_as_lists_as_json_or_with_a_separator(tmp_path: Path, write: Any) -> None:
    found = rows()
    splits, report = prepared(tmp_path, write(tmp_path, found), TASK)
    expected = {row["text"]: sorted(row["label"]) for row in found}
    written = [row for name in SPLITS for row in splits[name]]
    assert len(written) + sum(report["rows"]["dropped"].values()) == len(found)
    assert all(row["target"] == expected[row["input"]["text"]] for row in written)
    for label in ("late", "torn", "refund"):
        for name in SPLITS:
            assert report["labels"][label][name] == sum(label in row["target"] for row in splits[name])
    sizes = {str(size): sum(len(row["target"]) == size for row in written) for size in range(4)}
    assert report["labels_per_row"] == {"may_be_empty": True, "rows": sizes}
    told = console.format_summary(report, "prepared")
    assert f"labels a row: 0: {sizes['0']} rows" in told and "labels are not doubted" in told
    assert report["suspects"]["found"] == 0 and "several labels" in report["suspects"]["why_none"]
    page = next((tmp_path / "runs" / ".data").glob("*/data.html")).read_text(encoding="utf-8")
    assert "Classification with several labels a row" in page and "How many labels a row has" in page
    assert report["split"]["shares"]["test"]["worst_label_deviation"] > 0


def test_the_order_is_the_recipes_and_spellings_are_one_label(tmp_path: Path) -> None:
    found = [{**row, "label": [label.upper() if at % 9 == 0 else label for label in row["label"]]}
             for at, row in enumerate(rows())]  # fmt: skip
    put(tmp_path / "rows.jsonl", found)
    data = "{source: {path: rows.jsonl}}"
    splits, report = prepared(tmp_path, data, TASK[:-1] + ", labels: [torn, refund, late]}")
    order = ["torn", "refund", "late"]
    for name in SPLITS:
        assert all(row["target"] == [label for label in order if label in row["target"]] for row in splits[name])
    assert set(report["labels"]["torn"]["spellings"]) == {"torn", "TORN"}
    assert any(row.get("original_target") for row in splits["train"])
    _, report = prepared(tmp_path, data, TASK)
    assert list(report["labels"]) == ["late", "refund", "torn"]


@pytest.mark.parametrize(
    ("label", "reason", "detail"),
    [
        ("late; torn", "bad_labels", "needed: a list of labels, its JSON, or data.columns.label_separator"),
        ("[late, torn]", "bad_labels", "the labels are [late, torn]; needed"),
        ("['late' 'torn']", "bad_list", "['late' 'torn'] is not a list: commas are missing between its entries"),
        ("['late'\n 'torn']", "bad_list", "commas are missing"),
        ("['late', 'to' \"rn\"]", "bad_list", "commas are missing"),
        (None, "bad_labels", "the labels are missing"),
        ({"late": 1}, "bad_labels", "needed: a list"),
        (["late", None], "bad_labels", "a label is null, and a label is a text"),
        (["late", ["torn"]], "bad_labels", 'a label is ["torn"]'),
        (["late", " "], "no_label", "the label is empty"),
        ('["\\ud83d", "late"]', "unknown_label", "'\\ud83d' is not among task.labels"),
        ('["late", ["\\ud83d"]]', "bad_labels", 'a label is ["\\ud83d"]'),
        (["late", "tron"], "unknown_label", "'tron' is not among task.labels; did you mean 'torn'?"),
    ],
)
def test_a_row_whose_labels_cannot_be_read_is_rejected_with_the_reason(
    tmp_path: Path, label: Any, reason: str, detail: str
) -> None:
    put(tmp_path / "rows.jsonl", [*rows(), {"text": "one row more", "label": label}])
    prepared(tmp_path, "{source: {path: rows.jsonl}}", TASK[:-1] + ", labels: [torn, refund, late]}")
    (line,) = [
        one
        for path in (tmp_path / "runs" / ".data").glob("*/rejected.jsonl")
        for one in atomic_files.read_jsonl(path)
        if one["kind"] == "rejected"
    ]
    assert line["reason"] == reason and detail in line["detail"] and line["line"] == 241


@pytest.mark.parametrize(("escape", "reason"), [("\\ud83d", "lone_surrogate"), ("\\u0000", "nul_byte")])
def test_a_label_that_no_file_can_hold_is_told(tmp_path: Path, escape: str, reason: str) -> None:
    put(tmp_path / "rows.jsonl", [*rows(), {"text": "one row more", "label": f'["late", "{escape}"]'}])
    _, report = prepared(tmp_path, "{source: {path: rows.jsonl}}", TASK)
    assert report["rows"]["rejected"] == {reason: 1}


def test_numbers_are_labels_and_an_empty_cell_with_a_separator_is_no_label(tmp_path: Path) -> None:
    found = [{"text": text, "label": [1, 2] if at % 3 else []} for at, text in enumerate(texts(120))]
    splits, _ = prepared(tmp_path, as_lists(tmp_path, found), TASK)
    assert {json.dumps(row["target"]) for row in splits["train"]} == {'["1", "2"]', "[]"}
    found = [{"text": text, "label": [["1"], ["1", "2"], []][at % 3]} for at, text in enumerate(texts(120))]
    splits, _ = prepared(tmp_path, as_separated(tmp_path, found), TASK)
    assert {json.dumps(row["target"]) for row in splits["train"]} == {'["1"]', '["1", "2"]', "[]"}


def test_without_empty_rows_an_answer_names_a_label(tmp_path: Path) -> None:
    _, report = prepared(tmp_path, as_lists(tmp_path, [row for row in rows() if row["label"]]), TASK)
    assert report["labels_per_row"]["may_be_empty"] is False and "0" not in report["labels_per_row"]["rows"]


def test_the_same_set_is_a_duplicate_and_another_set_a_conflict(tmp_path: Path) -> None:
    found = rows()
    found[0]["label"], found[1]["label"] = ["late", "torn"], ["late"]
    again = [{"text": found[0]["text"].upper(), "label": ["Torn", "late"]}, {**found[1], "label": ["late", "refund"]}]
    more = ", split: {test: 0.1, validation: 0.05, calibration: 0.05, seed: 3}"
    data = as_lists(tmp_path, [*found, *again])[:-1] + more
    splits, report = prepared(tmp_path, data + "}", TASK)
    in_train = {row["input"]["text"] for row in splits["train"]}
    assert report["rows"]["dropped"] == {"conflict": 2, "duplicate": 1}
    assert found[1]["text"] not in in_train
    with pytest.raises(RecipeError, match="1 texts bear several answers"):
        prepared(tmp_path, data + ", conflicts: fail}", TASK)


@pytest.mark.parametrize("do", ["drop", "other", "fail"])
def test_rare_labels_take_their_rows_along_or_become_one(tmp_path: Path, do: str) -> None:
    found = rows()
    for at in range(0, 12):
        found[at * 20]["label"] = [*found[at * 20]["label"], ["Fax", "fax", "telex"][at % 3]]
    data = as_lists(tmp_path, found)[:-1] + f", rare_labels: {{min_rows: 10, do: {do}}}}}"
    if do == "fail":
        with pytest.raises(RecipeError, match=r"2 labels of fewer than 10 rows, 12 rows in all \('Fax' 8, 'telex' 4\)"):
            prepared(tmp_path, data, TASK)
        return
    splits, report = prepared(tmp_path, data, TASK)
    written = [row for name in SPLITS for row in splits[name]]
    if do == "drop":
        assert report["rows"]["dropped"]["rare_label"] == 12 and set(report["labels"]) == {"late", "torn", "refund"}
        assert not any({"fax", "telex"} & {*row["target"]} for row in written)
    else:
        assert set(report["labels"]) == {"late", "torn", "refund", "other"} and len(written) == len(found)
        assert sum("other" in row["target"] for row in written) == 12
        assert sum(report["labels"]["other"][name] for name in SPLITS) == 12


def test_a_label_that_cannot_be_learnt_is_named(tmp_path: Path) -> None:
    found = rows()
    found[5]["label"] = ["late", "lost"]
    with pytest.raises(RecipeError, match=r"'lost' occurs once"):
        prepared(tmp_path, as_lists(tmp_path, found), TASK)
    none = [{**row, "label": []} for row in rows()]
    with pytest.raises(RecipeError, match=r"240 rows have fewer than two labels between them: none"):
        prepared(tmp_path, as_lists(tmp_path, none), TASK)


# The recipe.


@pytest.mark.parametrize(
    ("task", "more", "told"),
    [
        ("{kind: generation, instruction: Sum it up please., labels_per_row: many}", "",
         "task: labels_per_row belongs to kind classification"),
        (TASK.replace("many", "several"), "", "task.labels_per_row: given 'several', allowed: one or many"),
        (TASK, "train: {class_weight: balanced}", "train.class_weight: goes by the one label of a row"),
        (TASK, "train: {balanced_sampling: true}", "train.balanced_sampling: goes by the one label of a row"),
        (TASK, "compare: {primary: {baseline: base, metric: accuracy}}",
         "compare.primary.metric: given 'accuracy', allowed for kind classification with several labels a row: "
         "micro_f1, macro_f1, exact_match"),
        (TASK, "compare: {baselines: [{provider: openai, api: decisions, model: gpt-6-luna}]}",
         "compare.baselines.0.api: given decisions, which chooses one of the labels"),
        (TASK.replace(", labels_per_row: many", ""), "",
         "data.columns.label_separator: stands between labels of a row"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_several_labels_is_refused_with_its_line(
    tmp_path: Path, task: str, more: str, told: str
) -> None:
    put(tmp_path / "rows.jsonl", rows())
    separator = "{label_separator: ';'}" if "many" not in task and "several" not in task else "{}"
    (tmp_path / "r.yaml").write_text(
        f"task: {task}\nmodel: {{base: pocket}}\n"
        f"data:\n  source: {{path: rows.jsonl}}\n  columns: {separator}\n{more}\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as caught:
        load(str(tmp_path / "r.yaml"), (), "cpu")
    (line,) = [one for one in str(caught.value).splitlines() if told in one]
    assert "r.yaml:" in line


def test_the_plan_is_decided_by_micro_f1_where_it_names_no_metric(tmp_path: Path) -> None:
    put(tmp_path / "rows.jsonl", rows())
    for task, metric in ((TASK, "micro_f1"), (TASK.replace(", labels_per_row: many", ""), "accuracy")):
        (tmp_path / "r.yaml").write_text(
            f"task: {task}\nmodel: {{base: pocket}}\ndata: {{source: {{path: rows.jsonl}}}}\n"
            "compare: {primary: {baseline: base}}\n",
            encoding="utf-8",
        )
        primary = load(str(tmp_path / "r.yaml"), (), "cpu").recipe.compare.primary
        assert primary is not None and primary.metric == metric


# All of it.


@pytest.mark.slow(minutes=4)
def test_several_labels_are_trained_served_by_vllm_and_compared(tmp_path: Path) -> None:
    rng = random.Random(11)
    named = {"late": TOPICS[:5], "torn": TOPICS[5:10], "refund": TOPICS[10:]}
    found = []
    for number in range(220):
        labels = rng.sample(list(named), rng.choice([0, 1, 1, 2]))
        words = [rng.choice(named[label]) for label in labels] or ["nothing"]
        found.append({"text": f"message {number * 7919}: {' and '.join(words)}", "topics": "; ".join(labels)})
    put(tmp_path / "rows.jsonl", found)
    recipe = tmp_path / "topics.yaml"
    recipe.write_text(
        f"task: {TASK}\n"
        "data:\n"
        "  source: {path: rows.jsonl}\n"
        '  columns: {label: topics, label_separator: ";"}\n'
        "  split: {test: 0.2, validation: 0.15, calibration: 0.1}\n"
        "model: {base: pocket}\n"
        "compare: {primary: {baseline: base}, base_shots: 0}\n",
        encoding="utf-8",
    )
    runs = tmp_path / "runs"
    for stage, *words in (("train", *commands.TRAIN_SETTINGS), ("train.export", "export.quantize=none"),
                          ("compare", "export.quantize=none")):  # fmt: skip
        answer = commands.run_command(runs, stage, recipe, *words)
        assert answer.returncode == 0, answer.stderr
    here = Run((runs / "topics" / "latest").resolve())
    prompt = atomic_files.read_json(here.folder / "adapter" / "prompt.json")
    assert prompt["task"]["kind"] == "multilabel" and prompt["task"]["may_be_empty"] is True
    scores = atomic_files.read_json(here.folder / "scores.json")
    assert scores["plan"]["metric"] == "micro_f1" and scores["task"]["metrics"][0] == "micro_f1"
    test = list(atomic_files.read_jsonl(here.folder / "data" / "test.jsonl"))
    # What vLLM lets through is always a canonical set of labels.
    for name in ("tuned", "base"):
        predicted = list(atomic_files.read_jsonl(here.folder / "predictions" / f"{name}.jsonl"))
        assert [row["id"] for row in predicted] == [row["id"] for row in test]
        for row in predicted:
            assert row["label_ok"] and row["output"] == json.dumps(row["parsed"])
            assert row["parsed"] == sorted(row["parsed"]) and {*row["parsed"]} <= {"late", "refund", "torn"}
    assert scores["systems"]["tuned"]["parity"]["agreement"] >= 0.99
    # Six updates teach the pocket model nothing; the linear model finds words that name their label.
    linear_model = scores["systems"]["tfidf"]
    assert linear_model["title"] == "TF-IDF + one-vs-rest logistic regression"
    assert linear_model["metrics"]["micro_f1"]["value"] > 0.9
    assert set(linear_model["per_part"]) == {"late", "refund", "torn"}
    assert scores["confusion"] == {}
    assert "micro-F1" in (here.folder / "report.md").read_text(encoding="utf-8")
    assert "several labels a row" in (here.folder / "report.html").read_text(encoding="utf-8")
