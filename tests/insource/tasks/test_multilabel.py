"""Several labels a row: one recipe key, from the rows over the constraint to the report."""

import json
import random
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compare.systems import linear_baseline
from insource.backends.wire.json_schema import restrict_keywords, unwrap_answer, wrap_in_object
from insource.config.errors import RecipeError
from insource.config.load import load
from insource.config.metric_names import select_metrics
from insource.stats import metric_stats
from insource.system import atomic_files
from insource.tasks import format_metrics, multilabel
from insource.tasks.parsed_answer import TRUNCATED, ParsedAnswer
from insource.tracking.run import Run
from tests.helpers import commands
from tests.helpers.distinct_texts import TOPICS
from tests.helpers.errors import raises_error
from tests.helpers.grammars import matches
from tests.helpers.multilabel_rows import TASK, rows
from tests.helpers.prepared_rows import write_rows

LABELS = {"late": "A parcel that is late", 'to"rn': "", "réclamé": ""}
SPEC = multilabel.Spec("Name the topics.", LABELS, may_be_empty=True)
STRICT = multilabel.Spec("Name the topics.", LABELS, may_be_empty=False)
SETS = st.sets(st.sampled_from(list(LABELS)))
ROWS = st.lists(st.tuples(SETS, st.one_of(st.none(), SETS)), min_size=1, max_size=30)


def canonical(labels: Any) -> list[str]:
    return [label for label in LABELS if label in labels]


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
                other_orders = [order for order in permutations(chosen) if order != chosen]
                assert not any(matches(grammar, multilabel.answer_text(spec, order)) for order in other_orders)
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
    assert format_metrics(select_metrics("multilabel", score)) == "micro-F1 57.1%, macro-F1 33.3%, exact match 25.0%"
    assert multilabel.lowest_scoring(score)[-1] == ("late", 1.0)
    with pytest.raises(ValueError, match="no rows"):
        multilabel.score(SPEC, [], [])


@settings(deadline=None)
@given(ROWS)
def test_the_figures_are_scikit_learns(pairs: list[tuple[set[str], set[str] | None]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    targets = [canonical(target) for target, _ in pairs]
    answers = [
        ParsedAnswer(None, "not_json") if prediction is None else ParsedAnswer(canonical(prediction))
        for _, prediction in pairs
    ]
    tallies = multilabel.compute_metric_stats(SPEC, targets, answers)
    target_indicators, predicted_indicators = ([[int(label in row) for label in LABELS] for row in side] for side in
                    (targets, [answer.value or [] for answer in answers]))  # fmt: skip
    occurring = [index for index in range(3) if any(row[index] for row in target_indicators + predicted_indicators)]
    if occurring:
        indicators = (target_indicators, predicted_indicators)
        macro = f1_score(*indicators, labels=occurring, average="macro", zero_division=0.0)
        assert tallies["micro_f1"].compute_value() == pytest.approx(
            f1_score(*indicators, average="micro", zero_division=0.0)
        )
        assert tallies["macro_f1"].compute_value() == pytest.approx(macro)
    if all(answer.problem is None for answer in answers):
        assert tallies["exact_match"].compute_value() == pytest.approx(
            accuracy_score(target_indicators, predicted_indicators)
        )
    score = multilabel.score(SPEC, targets, answers)
    assert select_metrics("multilabel", score) == {name: tally.compute_value() for name, tally in tallies.items()}


def test_a_resample_of_label_sets_is_the_sum_of_its_rows() -> None:
    targets, predictions = [{0}, {0, 1}, set(), {2}], [{0}, {1}, {2}, set()]
    metric = metric_stats.multilabel_macro_f1_metric(targets, predictions, 3)
    sampled = [1, 1, 3]
    resampled = metric_stats.multilabel_macro_f1_metric(
        [targets[index] for index in sampled], [predictions[index] for index in sampled], 3
    )
    assert metric.subset(sampled).compute_value() == pytest.approx(resampled.compute_value())


def test_a_closed_model_gets_an_object_with_the_array_and_is_read_without_it() -> None:
    schema = multilabel.output_schema(STRICT)
    sent_schema = restrict_keywords(
        wrap_in_object(schema),
        frozenset({"type", "properties", "required", "additionalProperties", "items", "enum", "maxItems"}),
    )
    assert sent_schema["properties"]["answer"]["items"]["enum"] == list(LABELS)
    assert "uniqueItems" not in sent_schema["properties"]["answer"] and "no entry twice" in str(sent_schema)
    answer = unwrap_answer(schema, '{"answer": ["réclamé", "late"]}')
    assert multilabel.parse(STRICT, answer) == ParsedAnswer(["late", "réclamé"])
    assert multilabel.parse(STRICT, unwrap_answer(schema, '{"answers": ["late"]}')) == ParsedAnswer(
        None, "wrong_schema"
    )


def test_answers_that_one_has_are_read_as_the_rows_are() -> None:
    read_answer = multilabel.make_answer_reader(SPEC, True, ";")
    for raw in (["réclamé", "Late"], '["réclamé", "Late"]', "réclamé; Late", "réclamé;late;"):
        assert read_answer(raw) == '["late", "réclamé"]'
    assert read_answer("") == "[]" and read_answer("lost; late") == '["late", "lost"]'
    assert read_answer("['late' 'réclamé']") == "['late' 'réclamé']"
    assert read_answer("['late',\n 'réclamé']") == '["late", "réclamé"]'
    assert multilabel.make_answer_reader(SPEC, True)("late; réclamé") == "late; réclamé"
    assert multilabel.make_answer_reader(SPEC, False)(["Late"]) == '["Late"]'


# The linear model beside it.


def test_one_vs_rest_finds_each_label_by_itself() -> None:
    labels = ["late", "torn", "never", "always"]

    def row(text: str, *target: str) -> dict[str, Any]:
        return {"input": {"text": text}, "target": [*target, "always"]}

    train = [row("it came late", "late"), row("the box is torn", "torn"), row("late and torn", "late", "torn")] * 4
    train += [row("thank you very much"), row("have a good day")] * 4
    test_rows = [row(text) for text in ("late again and torn again", "thank you", "my parcel was late")]
    predictions = linear_baseline.predict_label_sets(train, test_rows, labels, may_be_empty=True)
    assert [json.loads(prediction.output) for prediction in predictions] == [
        ["late", "torn", "always"],
        ["always"],
        ["late", "always"],
    ]
    assert all(prediction.log_probability is not None and prediction.log_probability < 0 for prediction in predictions)
    unlabeled = [{**train_row, "target": train_row["target"][:-1]} for train_row in train]
    for may_be_empty in (True, False):
        (only_prediction,) = linear_baseline.predict_label_sets(unlabeled, [row("thank you")], labels[:3], may_be_empty)
        assert (only_prediction.output == "[]") is may_be_empty


# The recipe.


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("{kind: generation, instruction: Sum it up please., labels_per_row: many}", "",
         "task: labels_per_row belongs to kind classification"),
        (TASK.replace("many", "several"), "", "task.labels_per_row: given 'several', allowed: one or many"),
        (TASK, "train: {class_weight: balanced}", "train.class_weight: uses one label for each row"),
        (TASK, "train: {balanced_sampling: true}", "train.balanced_sampling: uses one label for each row"),
        (TASK, "compare: {primary: {baseline: base, metric: accuracy}}",
         "compare.primary.metric: given 'accuracy', allowed for kind classification with several labels a row: "
         "micro_f1, macro_f1, exact_match"),
        (TASK, "compare: {baselines: [{provider: openai, api: decisions, model: gpt-6-luna}]}",
         "compare.baselines.0.api: given decisions, which chooses one of the labels"),
        (TASK.replace(", labels_per_row: many", ""), "",
         "data.columns.label_separator: separates the labels of a row"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_several_labels_is_refused_with_its_line(
    tmp_path: Path, task: str, settings: str, message: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", rows())
    separator = "{label_separator: ';'}" if "many" not in task and "several" not in task else "{}"
    (tmp_path / "r.yaml").write_text(
        f"task: {task}\nmodel: {{base: pocket}}\n"
        f"data:\n  source: {{path: rows.jsonl}}\n  columns: {separator}\n{settings}\n",
        encoding="utf-8",
    )
    with raises_error(RecipeError, "INS-R001") as error:
        load(str(tmp_path / "r.yaml"), (), "cpu")
    (line,) = [text_line for text_line in str(error.value).splitlines() if message in text_line]
    assert "r.yaml:" in line


def test_the_plan_is_decided_by_micro_f1_where_it_names_no_metric(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", rows())
    for task, metric in ((TASK, "micro_f1"), (TASK.replace(", labels_per_row: many", ""), "accuracy")):
        (tmp_path / "r.yaml").write_text(
            f"task: {task}\nmodel: {{base: pocket}}\ndata: {{source: {{path: rows.jsonl}}}}\n"
            "compare: {primary: {baseline: base}}\n",
            encoding="utf-8",
        )
        primary = load(str(tmp_path / "r.yaml"), (), "cpu").recipe.compare.primary
        assert primary is not None and primary.metric == metric


# All of it.


@pytest.mark.nightly
def test_several_labels_are_trained_served_by_vllm_and_compared(tmp_path: Path) -> None:
    rng = random.Random(11)
    topics_by_label = {"late": TOPICS[:5], "torn": TOPICS[5:10], "refund": TOPICS[10:]}
    source_rows = []
    for number in range(220):
        labels = rng.sample(list(topics_by_label), rng.choice([0, 1, 1, 2]))
        topics = [rng.choice(topics_by_label[label]) for label in labels] or ["nothing"]
        source_rows.append({"text": f"message {number * 7919}: {' and '.join(topics)}", "topics": "; ".join(labels)})
    write_rows(tmp_path / "rows.jsonl", source_rows)
    recipe = tmp_path / "topics.yaml"
    recipe.write_text(
        f"task: {TASK}\n"
        "data:\n"
        "  source: {path: rows.jsonl}\n"
        '  columns: {label: topics, label_separator: ";"}\n'
        "  split: {test: 0.2, validation: 0.15, calibration: 0.1}\n"
        "model: {base: pocket}\n"
        'tracking: {wandb: {mode: "off"}}\n'
        "compare: {primary: {baseline: base}, base_shots: 0}\n",
        encoding="utf-8",
    )
    runs = tmp_path / "runs"
    for stage, *arguments in (("train", *commands.TRAIN_SETTINGS), ("train.export", "export.quantize=none"),
                          ("compare", "export.quantize=none")):  # fmt: skip
        completed = commands.run_command(runs, stage, recipe, *arguments)
        assert completed.returncode == 0, completed.stderr
    run = Run((runs / "topics" / "latest").resolve())
    prompt = atomic_files.read_json(run.folder / "adapter" / "prompt.json")
    assert prompt["task"]["kind"] == "multilabel" and prompt["task"]["may_be_empty"] is True
    scores = atomic_files.read_json(run.folder / "scores.json")
    assert scores["plan"]["metric"] == "micro_f1" and scores["task"]["metrics"][0] == "micro_f1"
    test = list(atomic_files.read_jsonl(run.folder / "data" / "test.jsonl"))
    # What vLLM lets through is always a canonical set of labels.
    for name in ("tuned", "base"):
        predicted = list(atomic_files.read_jsonl(run.folder / "predictions" / f"{name}.jsonl"))
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
    assert "micro-F1" in (run.folder / "report.md").read_text(encoding="utf-8")
    assert "several labels a row" in (run.folder / "report.html").read_text(encoding="utf-8")
