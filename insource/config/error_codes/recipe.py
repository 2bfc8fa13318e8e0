"""Errors of recipes and calls (INS-R)."""

from insource.config.error_codes.description import ErrorDescription

DESCRIPTIONS = (
    ErrorDescription(
        "INS-R001",
        "The recipe has mistakes",
        "One or more keys of the recipe, the hardware file or SET are wrong. Each line has file, line, key, message "
        "and the code of that mistake.",
        "Look up the code of each line, correct all lines, and run the command again.",
        "mine.yaml has 1 mistake:\n  mine.yaml:4  train.learning_rat: unknown key; did you mean learning_rate? "
        "[INS-R002]",
    ),
    ErrorDescription(
        "INS-R002",
        "Unknown key",
        "The recipe has a key that the schema does not have at this place.",
        "Use the key that the message suggests. An editor that reads `recipes/.schema.json` completes keys.",
        "unknown key; did you mean learning_rate?",
    ),
    ErrorDescription(
        "INS-R003",
        "Required key missing",
        "A key without a default is missing, such as `task.kind`, `data.source` or `model.base`.",
        "Add the key. The recipes in `recipes/` show all required keys.",
        "is missing, and has no default",
    ),
    ErrorDescription(
        "INS-R004",
        "Value not allowed",
        "A value has the wrong type, is outside its bounds, or is not one of the allowed names.",
        "Use a value that the message allows. Text that looks like a number or a date needs quotes in YAML.",
        "given 600, allowed: at most 512",
    ),
    ErrorDescription(
        "INS-R005",
        "Key of another tool that insource does not support",
        "The key exists in PEFT or transformers, and insource refuses it for the reason in the message.",
        "Remove the key, or use the key that the message names.",
        "not supported: the merged model is always made of the dequantized base (serve.base: trained)",
    ),
    ErrorDescription(
        "INS-R006",
        "Keys contradict each other",
        "Two keys are valid, but not together, such as `train.class_weight` with `task.kind: extraction`.",
        "Change or remove one of the keys. The message names both and a value that works.",
        "export.merge: export.quantize needs the merged model; set merge: true, or quantize: none",
    ),
    ErrorDescription(
        "INS-R007",
        "Recipe not found",
        "RECIPE is neither the name of a file in `recipes/` nor the path of a YAML file.",
        "Correct the name, or give the path: `make train RECIPE=my/tickets.yaml`.",
        "my/tickets.yaml: this recipe file does not exist",
    ),
    ErrorDescription(
        "INS-R008",
        "Recipe file cannot be read",
        "The file is not UTF-8, not YAML, or not a mapping with `task`, `data` and `model`.",
        "Correct the file at the line of the message. Indent with spaces; put quotes around text with `: ` or ` #`.",
        "mine.yaml: a recipe is a mapping with task, data and model; this is an empty file",
    ),
    ErrorDescription(
        "INS-R009",
        "Unknown hardware",
        "HARDWARE (or `--hardware`) is not the name of a file in `recipes/hardware/`.",
        "Use one of the names in the message, or leave HARDWARE out: insource then detects the hardware.",
        "There is no hardware 'gpus'. Did you mean gpu?\n  recipes/hardware/ has: cpu, gpu",
    ),
    ErrorDescription(
        "INS-R010",
        "SET cannot be read",
        "SET needs words of the form `dotted.key=value`, where the value is YAML.",
        'Write `SET="train.learning_rate=1e-4 lora.r=8"`. Put quotes around a value with special characters.',
        "SET 'lora': write dotted.key=value, such as train.learning_rate=1e-4",
    ),
    ErrorDescription(
        "INS-R011",
        "Option or variable not allowed",
        "An option of the command or an environment variable has a value that is not allowed.",
        "Use a value that the message allows.",
        "ENGINE: given 'vlm', allowed: vllm or gateway or ray",
    ),
    ErrorDescription(
        "INS-R012",
        "Argument missing",
        "The command needs an argument that was not given.",
        "Add the argument. `make help` shows the arguments of each command.",
        "INPUT is missing: make predict RECIPE=... INPUT=rows.csv OUTPUT=answers.parquet",
    ),
    ErrorDescription(
        "INS-R013",
        "No trained run",
        "The command uses a trained run, and the recipe's folder below RUNS has none, or none with the id in RUN.",
        "Run `make train RECIPE=...` first. If the runs are in another folder, set RUNS. If RUN is set, correct it.",
        "no finished run below /home/me/runs/tickets: `make train RECIPE=tickets` makes one",
    ),
    ErrorDescription(
        "INS-R014",
        "Run of another version",
        "Another version of insource wrote the run, and this version cannot read it.",
        "Update insource, or train again with this version (`FRESH=1`).",
        "run 2026-11-30-1 was trained by an earlier version, and its prompt.json has no task",
    ),
    ErrorDescription(
        "INS-R015",
        "Output file exists",
        "The command would replace a file that may have your changes.",
        "Give another name, or set `FORCE=1` to replace the file.",
        "OUTPUT: /home/me/out.csv exists already and was not written by predict; FORCE=1 replaces it",
    ),
    ErrorDescription(
        "INS-R016",
        "Variants of a sweep do not fit",
        "A sweep compares at least two variants on the same rows. The variants are equal, or one changes the data.",
        "Give different MODELS or VARIANTS. Put changes of `task` and `data` into SET, for all variants.",
        "variant data.seed=2 changes `data`: variants may change only model, lora, train and accelerate, because they "
        "are compared on the same rows; set it for all of them (SET)",
    ),
)
