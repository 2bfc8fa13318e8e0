"""Errors of the comparison and of API models (INS-C, INS-A)."""

from insource.config.error_codes.description import ErrorDescription

COMPARISON = (
    ErrorDescription(
        "INS-C001",
        "Plan names an unknown system",
        "`compare.primary` names a system that this comparison does not have.",
        "Use one of the names in the message, or add the baseline to `compare.baselines`.",
        "compare.primary.baseline: given 'gpt', allowed: tuned, base, gpt-6-luna",
    ),
    ErrorDescription(
        "INS-C002",
        "Planned system could not be evaluated",
        "A system of `compare.primary` failed, so the planned comparison is impossible.",
        "Correct the reason in the message and run the same command again: finished answers are kept.",
        "compare.primary: tuned (adapter) could not be served",
    ),
    ErrorDescription(
        "INS-C003",
        "scores.json cannot be read",
        "The file was changed or written by another version.",
        "Run `make compare RECIPE=... FRESH=1`.",
        "runs/tickets/1/scores.json: systems.0.name: Field required (1 such errors); compare again (`make compare "
        "RECIPE=... FRESH=1`)",
    ),
    ErrorDescription(
        "INS-C004",
        "routing.json missing or of another version",
        "The threshold for routing is written by the comparison, and the file is missing or has another format.",
        "Run `make compare RECIPE=...`.",
        "there is no runs/tickets/1/routing.json; compare again (`make compare RECIPE=...`)",
    ),
    ErrorDescription(
        "INS-C005",
        "Ledger cannot be read",
        "`ledger.jsonl` records the plan and each reading of the test set. A line is not JSON.",
        "Restore the file from a copy. If you remove the line, the report no longer shows that reading.",
        "runs/tickets/ledger.jsonl:3: this line of the ledger is not JSON: "
        "'{\"event\"'. The ledger records each reading "
        "of the test set; repair the line, or remove it and lose that record",
        is_linked=True,
    ),
    ErrorDescription(
        "INS-C006",
        "File of answers not found",
        "A baseline with `provider: file` names a file that does not exist.",
        "Correct `path`. It is relative to the folder of the recipe.",
        "compare.baselines: there is no file /data/answers.jsonl",
    ),
    ErrorDescription(
        "INS-C007",
        "Row of a file of answers invalid",
        "Each row needs `id` (that of a test row) and `output`. Costs, tokens and seconds are numbers or null.",
        "Correct the line in the message. docs/comparing.md has the format.",
        "answers.csv:4: id 'r0' is in line 2 already; a row has one answer: keep one of them",
    ),
    ErrorDescription(
        "INS-C008",
        "File of answers has other ids",
        "No id of the file is that of a test row.",
        "Use the ids of `data/test.jsonl`. Set `data.columns.id`, so that ids are those of your source.",
        "answers.csv answers none of the 200 test rows: its ids must be those of data/test.jsonl",
    ),
    ErrorDescription(
        "INS-C009",
        "Encoder cannot be loaded",
        "`compare.encoder` is neither a folder nor a model that the hub or its cache has.",
        "Correct the name, or leave `compare.encoder` out: the linear baseline then uses TF-IDF only.",
        "compare.encoder: some/encoder cannot be loaded: is not a local folder",
    ),
    ErrorDescription(
        "INS-C010",
        "API model cannot be recorded or measured",
        "The command needs a baseline of `compare.baselines` that is an API model of the right kind.",
        "Name one of the baselines in the message (SYSTEM=...), or add one to the recipe.",
        "SYSTEM: gpt is not an API model of compare.baselines; there are gpt-6-luna",
    ),
    ErrorDescription(
        "INS-C011",
        "No variant of the sweep was trained",
        "Every variant failed. The message has the reason of each.",
        "Train one variant with `make train` to see its error.",
        "no variant was trained: r8: training ended with exit code 1",
    ),
    ErrorDescription(
        "INS-C012",
        "Variants scored on different rows",
        "Two variants dropped different rows, because their tokenizers or lengths differ, so their scores cannot be "
        "ranked.",
        "Raise `train.max_length` and `serve.max_model_len` until no row is dropped.",
        "variant smollm2 was scored on other validation rows than pocket: its tokenizer or train.max_length drops "
        "other "
        "rows. Compare the two by `make compare`, or set train.max_length and serve.max_model_len so high that no row "
        "is dropped",
    ),
    ErrorDescription(
        "INS-C013",
        "Too few rows for a learning curve",
        "`make curve` compares subsets of the train rows, and there are too few for two subsets.",
        "Label more rows, or lower `data.split.test`.",
        "a learning curve needs at least 40 train rows, and there are 30; label more rows, or reduce data.split.test",
    ),
    ErrorDescription(
        "INS-C014",
        "Classification head does not answer",
        "The process that answers with the classification head ended with an error. Its own message is above this one.",
        "Correct that problem. `python -m train.head RECIPE --fresh` trains the head again; `compare.head: false` "
        "compares without it.",
        "compare.head: the process that answers with the head ended with exit code 1; see the message above. "
        "`python -m train.head RECIPE --fresh` trains the head again; SET=compare.head=false compares without it",
    ),
)

API_MODELS_AND_BUDGETS = (
    ErrorDescription(
        "INS-A001",
        "API model not available",
        "A baseline cannot be evaluated: its API key is missing, `privacy.data_may_leave` is false, or the provider "
        "rejected the first request.",
        "Set the API key that the message names, or change the setting. `make doctor RECIPE=...` tests each API model.",
        "gpt-6-luna cannot be evaluated: OPENAI_API_KEY is not set",
    ),
    ErrorDescription(
        "INS-A002",
        "Price unknown",
        "`compare.budget_usd` is set, and genai-prices has no price of the model, so the budget cannot be enforced.",
        "Set `price: {input_usd_per_million: ..., output_usd_per_million: ...}` in the baseline.",
        "the price of my-model is unknown, so compare.budget_usd cannot be enforced; set in the baseline price: "
        "{input_usd_per_million: ..., output_usd_per_million: ...}",
    ),
    ErrorDescription(
        "INS-A003",
        "Budget too small",
        "The requests may cost more than `compare.budget_usd`.",
        "Request fewer rows, or raise `compare.budget_usd`.",
        "20 rows requested three times may cost $1.20, but compare.budget_usd is $1.00; request fewer (--rows), or "
        "raise it",
    ),
    ErrorDescription(
        "INS-A004",
        "Setting not supported by the API model",
        "The model family does not support `effort`, `temperature`, batches or the number of labels in the recipe.",
        "Change or remove the setting of the baseline. The message has the allowed values and their source.",
        "compare.baselines: luna: effort: given max, gpt-6 supports low, high (OpenAI's reference)",
    ),
    ErrorDescription(
        "INS-A005",
        "Credentials missing",
        "The SDK finds no credentials, project or API version for the cloud.",
        "Set the variable that the message names, or log in with the cloud's own command (`aws configure`, `gcloud "
        "auth application-default login`).",
        "model claude on vertex needs a project: set ANTHROPIC_VERTEX_PROJECT_ID",
    ),
    ErrorDescription(
        "INS-A006",
        "Library of a cloud missing",
        "The cloud needs a library that the lock does not contain.",
        "Install it into .venv with the command in the message.",
        "model claude on bedrock needs boto3, which is not installed: pip install boto3 (the extra `bedrock` of this "
        "project)",
    ),
    ErrorDescription(
        "INS-A007",
        "API key for another host",
        "`base_url` is not an address of the provider, so the provider's API key is not sent there.",
        "Name the variable with the key of that host in `api_key_env`.",
        "compare.baselines: luna: OPENAI_API_KEY is not sent to https://proxy.example.org/v1, which is no https "
        "address "
        "of its provider; name the environment variable with the key for that host: api_key_env: ... (any variable "
        "that is set, where the host wants no key)",
    ),
    ErrorDescription(
        "INS-A008",
        "Batch in flight",
        "An earlier comparison started a batch that the provider will charge, and this call would not use it.",
        "Compare again with the earlier settings to get the answers. To give up the batch, remove the file in the "
        "message.",
        "runs/tickets/.answers/luna.batch.json records a batch that was started and will be charged; compare again "
        "with mode: batch to get its answers, or remove the file to give up the batch",
        is_linked=True,
    ),
    ErrorDescription(
        "INS-A009",
        "API model left rows unanswered",
        "The provider did not answer all rows. The answers that were paid for are kept.",
        "Run the same command again: it requests only the missing rows.",
        "gpt-6-luna: the budget is used up; finished answers are kept: run the same command for the rest",
    ),
    ErrorDescription(
        "INS-A010",
        "Recorded answers damaged",
        "A line of a file with recorded answers is not a record. Another program changed the file.",
        "Remove the line that the message names; the next call requests its answer again.",
        "runs/tickets/.predict/1/000000.jsonl:1: this line is not a recorded answer. Another program changed the file: "
        "remove the line; the next call requests its answer again",
    ),
)
