"""Errors of export, serving, the gateway and prediction (INS-E, INS-G, INS-P)."""

from insource.config.error_codes.description import ErrorDescription

EXPORT_AND_SERVING = (
    ErrorDescription(
        "INS-E001",
        "Variant not exported",
        "The recipe names a variant (merged, quantized/int8, ...) that the run does not have.",
        "Run `make export RECIPE=...`, or name a variant that the run has.",
        "run 2026-11-30-1 has no merged; it has adapter. `make export RECIPE=tickets` writes merged and quantized "
        "models",
    ),
    ErrorDescription(
        "INS-E002",
        "Model cannot be served as configured",
        "vLLM cannot serve the model with these settings, or several recipes cannot share a server. Each line has one "
        "problem and its solution.",
        "Change the key in each line, or serve another variant (`serve.model`).",
        "several recipes can share one server only as adapters; given a (adapter), b (merged)",
    ),
    ErrorDescription(
        "INS-E003",
        "Base of the run missing",
        "The folder of the base that the run was trained on does not exist on this machine, or was changed.",
        "Restore the folder, run the command in the message, or train again with `FRESH=1`.",
        "model.base: tickets was trained on /models/qwen, and there is no such folder",
    ),
    ErrorDescription(
        "INS-E004",
        "API key required",
        "Other machines or users can reach the server, and no API key is set.",
        "Set the key: `export INSOURCE_API_KEY=$(openssl rand -hex 32)`. For vLLM on this machine only, use "
        "`serve.host=127.0.0.1`.",
        "serve.host: 0.0.0.0 can be reached from other machines, and there is no key: set INSOURCE_API_KEY in the "
        "environment, or serve on 127.0.0.1",
    ),
    ErrorDescription(
        "INS-E005",
        "vLLM ended or did not start",
        "The vLLM process ended, or was not ready within `serve.start_seconds`. The message has its last error.",
        "Read the log that the message names. Frequent causes: too little memory (lower `serve.max_model_len` or "
        "`serve.gpu_memory_utilization`), or a first start that compiles (raise `serve.start_seconds`).",
        "vLLM was not ready after 600 s (serve.start_seconds), last line of serve.log: Loading weights",
        is_linked=True,
    ),
    ErrorDescription(
        "INS-E006",
        "vLLM fails repeatedly",
        "vLLM ended or stopped computing several times within minutes, so it is not started again.",
        "Read the log. If vLLM only computes slowly, raise `serve.hang_seconds`.",
        "vLLM has failed 4 times within 10 minutes: vLLM ended with -9",
        is_linked=True,
    ),
    ErrorDescription(
        "INS-E007",
        "Served model differs from the trained one",
        "The parity check found other answers than those that training recorded. The variant is not used.",
        "Run `make parity RECIPE=...` for the differing rows. If the loss is acceptable, lower the limit in "
        "`serve.parity`; else serve `serve.model=adapter` or merged weights without quantization.",
        "not served: the served model does not match the trained one: adapter: 80.0% of answers agree",
        is_linked=True,
    ),
    ErrorDescription(
        "INS-E008",
        "Served prompts differ from training",
        "The server makes other token ids of the prompts than training, because of another chat template or tokenizer.",
        "Serve the folder that training or export wrote, unchanged, with the locked versions of vLLM and transformers.",
        "not served: the server builds other prompts for tickets than training, row r1: 3 ids differ",
    ),
    ErrorDescription(
        "INS-E009",
        "vLLM rejects a request",
        "vLLM answered a request of insource with an error. The message has the reason of vLLM.",
        "Read the reason. Often the prompt is longer than `serve.max_model_len`.",
        "/tokenize answers 400: the prompt is too long",
    ),
    ErrorDescription(
        "INS-E010",
        "Check without answers",
        "The server left requests of the parity check unanswered.",
        "Read the error of the first row in the message and the log of vLLM, then run the command again.",
        "2 of 50 requests were not answered; the first, r3: timeout",
    ),
    ErrorDescription(
        "INS-E011",
        "Reference answers missing or changed",
        "`reference.jsonl`, which training wrote, is missing or changed, so served answers cannot be compared with it.",
        "Copy the file again from the original run, or train again with `FRESH=1`.",
        "/runs/tickets/1/reference.jsonl was changed after training; copy it again, or train again (FRESH=1)",
    ),
    ErrorDescription(
        "INS-E012",
        "Quantization not supported here",
        "This machine has no hardware or kernel for the quantization in `export.quantize`.",
        "Use `export.quantize: int8`, or export on a machine with a newer GPU.",
        "export.quantize: fp8 needs a GPU of compute capability 8.9 or newer, and this machine serves on a CPU; set "
        "int8",
    ),
    ErrorDescription(
        "INS-E013",
        "llm-compressor failed",
        "The process that quantizes the weights ended with an error.",
        "Read its last line in the message. Often memory is short: use `export.quantize: int8`.",
        "llm-compressor ended with 1: torch.OutOfMemoryError",
    ),
    ErrorDescription(
        "INS-E014",
        "Adapter missing or changed",
        "The adapter folder of the run is missing, incomplete or different from its checksums.",
        "Copy the folder again from the original run, or train again with `FRESH=1`.",
        "run 2026-11-30-1 has no adapter to deploy; `make train RECIPE=tickets` makes one",
    ),
    ErrorDescription(
        "INS-E015",
        "Preference scores of an adapter on a CPU",
        "On a CPU vLLM returns no prompt log-probabilities for an adapter, which kind preference needs.",
        "Run `make export`, then compare the merged model: `SET=serve.model=merged`.",
        "serve.model: on a CPU vLLM (0.32) returns no prompt log-probabilities for an adapter; compare the merged "
        "model: SET=serve.model=merged, after `make export`",
    ),
    ErrorDescription(
        "INS-E016",
        "Model trained with examples in its prompt",
        "The run was trained with `train.shots`: each prompt has similar train rows as examples. `make compare` and "
        "`make parity` send such prompts. `make serve`, `make predict`, `make label` and `make deploy` send prompts "
        "without examples, which the model was not trained on.",
        "Use the run in `make compare`. To serve or deploy, train with `train.shots: 0`.",
        "run 2026-11-30-1 was trained with train.shots: 3. Its prompts have similar train rows as examples, which a "
        "server, a gateway and a prediction do not send. Use it in `make compare`; to serve or deploy, train with "
        "train.shots: 0",
    ),
)

GATEWAY_AND_DEPLOYMENT = (
    ErrorDescription(
        "INS-G001",
        "Nothing deployed",
        "The registry has no version of this recipe, or none that can be served.",
        "Run `make deploy RECIPE=...`. If the registry is in another folder, set REGISTRY.",
        "nothing is deployed below registry/tickets; `make deploy RECIPE=tickets` deploys",
    ),
    ErrorDescription(
        "INS-G002",
        "No such version to roll back to",
        "The version in TO was never deployed or is incomplete, or there is no earlier version.",
        "Use a version that the message lists.",
        "there is no complete version abc below registry/tickets; there are 0123456789ab",
    ),
    ErrorDescription(
        "INS-G003",
        "Deployed version cannot be read",
        "A file of the version in the registry is missing, damaged or changed.",
        "Deploy the run again (`make deploy RECIPE=... RUN=...`), or roll back (`make rollback`).",
        "version 0123456789ab below registry/tickets is incomplete",
    ),
    ErrorDescription(
        "INS-G004",
        "Version does not fit the running vLLM",
        "The version has another base, chat template, stop token or a larger rank than the running vLLM was started "
        "for.",
        "Start the gateway again; it then starts vLLM for the new version.",
        "its base is some/model, and other/model is served; start the gateway again",
    ),
    ErrorDescription(
        "INS-G005",
        "Version gives other answers than training",
        "vLLM gives too few of the version's reference answers, so the gateway keeps the previous version.",
        "Run `make parity RECIPE=...` for the run. See INS-E007.",
        "vLLM gives 60.0% of its reference answers, and at least 95.0% are required (serve.parity.same_weights)",
    ),
    ErrorDescription(
        "INS-G006",
        "No calibration profile",
        "The deployed version was never compared, so drift has nothing to compare traffic with.",
        "Run `make compare RECIPE=...`, then `make deploy RECIPE=...`.",
        "0123456789ab below registry/tickets has no profile of its calibration rows to compare traffic with: run `make "
        "compare RECIPE=tickets`, then `make deploy RECIPE=tickets`",
    ),
    ErrorDescription(
        "INS-G007",
        "File of keys invalid",
        "The file of API keys cannot be read, can be written by other users, or has an invalid line. The message never "
        "contains a key.",
        "Write one client a line: a name, a space, and a key of the minimum length. Run `chmod 600 FILE`.",
        "INSOURCE_KEYS: keys.txt has no key; a line is a name and a key",
    ),
    ErrorDescription(
        "INS-G008",
        "Inputs cannot be recorded",
        "With `serve.record` the recorded rows must be readable by the same recipe. A column name or a format prevents "
        "that.",
        "Rename the column, or set `serve.record.share: 0`.",
        "data.columns.text: given 'time', but the record of serve.record.share 0.1 uses this column name itself; "
        "rename it, or record nothing (serve.record.share: 0)",
    ),
    ErrorDescription(
        "INS-G009",
        "Deployment checks failed",
        "The run failed a check before deployment. The lines above this one name each check.",
        "Correct what the lines name, such as a missing `make parity` or a verdict against the model. `FORCE=1` "
        "deploys anyway, and the history records that.",
        "not deployed, because 2 of the checks above failed; FORCE=1 deploys anyway, and the history records that",
        is_linked=True,
    ),
    ErrorDescription(
        "INS-G010",
        "Engine cannot serve the version",
        "An engine of `serve.engines` does not list or load the adapter, is no vLLM, or refuses the key.",
        "Start the engine with the flags in docs/engines.md. INSOURCE_ENGINE_KEY has the key of the engines.",
        "GET /v1/models does not list models: this is no vLLM",
    ),
)

PREDICTION = (
    ErrorDescription(
        "INS-P001",
        "OUTPUT not a file of a known format",
        "OUTPUT is a folder, or its suffix is not a format that predict writes.",
        "Give a file name with one of the suffixes in the message.",
        "OUTPUT: given answers.xlsx, allowed suffixes: .parquet, .jsonl, .csv",
    ),
    ErrorDescription(
        "INS-P002",
        "OUTPUT inside INPUT",
        "The next call would read its own output as input.",
        "Write OUTPUT into another folder.",
        "OUTPUT: in/answers.csv is a part of INPUT=in; give another folder",
    ),
    ErrorDescription(
        "INS-P003",
        "Column names clash",
        "The input has columns with the names that predict adds, even with its prefix.",
        "Rename these columns of the input.",
        "INPUT: it has columns insource_answer, which the output adds; rename them",
    ),
    ErrorDescription(
        "INS-P004",
        "Probabilities not available",
        "PROBABILITIES needs a task with labels, and through a gateway at most as many labels as the message states.",
        "Leave PROBABILITIES out, or predict without ENGINE and BASE_URL.",
        "PROBABILITIES: invoices has no labels to choose from: its kind is extraction",
    ),
    ErrorDescription(
        "INS-P005",
        "INPUT changed while it was read",
        "Another program wrote to the input, so answers could belong to other rows. OUTPUT was not written.",
        "Run the command again when the input no longer changes.",
        "INPUT was changed while it was read, so answers may belong to other rows; run the same command again",
    ),
    ErrorDescription(
        "INS-P006",
        "Rows without an answer",
        "The server failed on rows even after all retries. All finished answers are kept.",
        "Run the same command again: it requests only the missing rows. A row that fails again is written as refused.",
        "12 rows got no answer after all retries, so OUTPUT was not written; finished answers are kept. Run the same "
        "command: it requests only these rows, and refuses those that fail again",
    ),
    ErrorDescription(
        "INS-P007",
        "BASE_URL or ENGINE wrong",
        "BASE_URL is not an address, or the server there is of another kind or has another model.",
        "Give the address as `http://host:port`. Set `ENGINE=gateway` for a gateway and `ENGINE=vllm` for vLLM.",
        "BASE_URL: given '127.0.0.1:8000', allowed: an address such as http://127.0.0.1:8000",
    ),
    ErrorDescription(
        "INS-P008",
        "Inputs must not leave this machine",
        "`privacy.data_may_leave` is false, and BASE_URL is another machine.",
        "Add the host to `privacy.trusted_hosts` if inputs may be sent there.",
        "BASE_URL: privacy.data_may_leave is false, and gpu.example.org is neither this machine nor in "
        "privacy.trusted_hosts",
    ),
    ErrorDescription(
        "INS-P009",
        "Server does not answer",
        "The server at BASE_URL cannot be reached, or answers with an error that repeats.",
        "Check that the server runs. Then run the same command again: finished answers are kept.",
        "BASE_URL: the server does not answer: ClientConnectorError: Cannot connect",
    ),
    ErrorDescription(
        "INS-P010",
        "API key rejected",
        "The server does not accept the API key, or needs one.",
        "Set INSOURCE_API_KEY to a key of the server.",
        "the server rejects the API key: invalid key; set INSOURCE_API_KEY to its key",
    ),
    ErrorDescription(
        "INS-P011",
        "Server has another model than the run",
        "The server builds other prompts or gives other answers than the trained run, so its predictions would not be "
        "those that were evaluated.",
        "Serve this run (`make serve RECIPE=... RUN=...`), or predict with the run that is served.",
        "BASE_URL: the server does not serve run 2026-11-30-1: it reads other prompts than the run was trained on, "
        "from token 38 of 41 on: trained on ...'late<|im_end|>', and the server reads ...'late</s>'",
        is_linked=True,
    ),
    ErrorDescription(
        "INS-P012",
        "Gateway changed its version",
        "A deployment changed the version of the gateway during the call. OUTPUT would mix two versions.",
        "Run the same command again.",
        "the gateway changed from version v1 to v2; run the same command again to get all answers from one version",
    ),
    ErrorDescription(
        "INS-P013",
        "No row to label",
        "No row of INPUT can be proposed: each one cannot be used, or repeats a row that the recipe has.",
        "Name other rows in INPUT.",
        "INPUT: rows.csv: none of 40 rows can be labelled (near_duplicate 40)",
    ),
    ErrorDescription(
        "INS-P014",
        "Ray not installed",
        "`ENGINE=ray` needs the package ray, which is not in the lock.",
        "Run the command in the message, on every node of the cluster.",
        "ENGINE=ray: ray is not installed; run .venv/bin/python -m pip install 'ray>=2.60,<2.61'",
    ),
    ErrorDescription(
        "INS-P015",
        "Ray cluster cannot be used",
        "There is no cluster at RAY_ADDRESS, it has another version of Ray or Python, it has no node for a worker, or "
        "its workers end again and again.",
        "Check `ray status` and RAY_ADDRESS. Then run the same command again: finished answers are kept.",
        "RAY_ADDRESS: given 10.0.0.1:6379: no cluster answers there: ConnectionRefusedError: [Errno 111] "
        "Connection refused; give the address that `ray start` printed",
    ),
)
