"""Errors of source files and rows (INS-D)."""

from insource.config.error_codes.description import ErrorDescription

DESCRIPTIONS = (
    ErrorDescription(
        "INS-D001",
        "Source file not found",
        "A path of `data.source` (or INPUT) names no file or folder, matches nothing, or is a broken link.",
        "Correct the path. Paths in a recipe are relative to the folder of the recipe, paths in SET to the current "
        "folder.",
        "data.source.path: there is no file rows.csv",
    ),
    ErrorDescription(
        "INS-D002",
        "Source file cannot be read",
        "The operating system refuses to read the file or folder.",
        "Give this user read permission (`chmod u+r FILE`), or check the disk if the reason is an input/output error.",
        "rows.csv: the file cannot be read (permission denied); give this user read permission",
    ),
    ErrorDescription(
        "INS-D003",
        "Unknown kind of file",
        "The suffix names no format that insource reads, or the folder has no file in such a format.",
        "Rename the file so that its suffix fits the content, or convert it to CSV, JSONL or Parquet.",
        "data.source.path: /data/in has no file that can be read. Known: .csv, .jsonl",
    ),
    ErrorDescription(
        "INS-D004",
        "Splits of the source unclear",
        "The files or the saved data set have names such as test, but not every file has a clear split.",
        "Name the files of each split with `data.source: {train: ..., test: ...}`, or list all files in "
        "`data.source.paths` to split their rows again.",
        "data.source.path: reviews has a split test but none named train; name the splits train and test",
    ),
    ErrorDescription(
        "INS-D005",
        "Same file given twice",
        "Two paths of `data.source` are the same file or folder, so its rows would count twice.",
        "Name it once.",
        "data.source: /data/b.csv and /data/a.csv are the same file; its rows would count twice. Name it once",
    ),
    ErrorDescription(
        "INS-D006",
        "Data set of the hub not loaded",
        "`data.source.hub` is not in the cache, and the hub did not deliver it.",
        "Check name, revision and network. Without a network, download the files elsewhere and set `data.source.path`.",
        "data.source.hub: nobody/nothing at abcdef0 could not be loaded: Offline mode is enabled.\n  Tried: this "
        "user's "
        "cache, then the hub. Instead set data.source.path to a folder that `datasets` saved, or to CSV, JSONL or "
        "Parquet files.",
    ),
    ErrorDescription(
        "INS-D007",
        "File without rows",
        "The file or sheet is empty, or has a header and nothing below it.",
        "Check the export that wrote the file, or remove the file from the source.",
        "rows.csv: the file is empty",
    ),
    ErrorDescription(
        "INS-D008",
        "Content unlike the file name",
        "The file starts like another format (an old or protected Excel workbook, an archive, a PDF), or it is a "
        "response of an API without rows.",
        "Rename the file to its format if insource reads that, else export it as CSV or .xlsx without a password. "
        "Download it again if the message is an error of an API.",
        "rows.xlsx: this is an old Excel workbook (.xls), or one with a password; save it as .xlsx without a password",
    ),
    ErrorDescription(
        "INS-D009",
        "Git LFS pointer instead of a file",
        "The repository stores the file with Git LFS, and only its pointer was fetched.",
        "Run `git lfs pull` in the repository of the file, or download the file.",
        "rows.csv: this is a pointer of Git LFS, and its content was not fetched; run `git lfs pull` in its "
        "repository, or download the file itself",
    ),
    ErrorDescription(
        "INS-D010",
        "Text encoding unknown or wrong",
        "A byte of the file is invalid in its encoding, or the given encoding does not exist.",
        "Set `data.source.encoding` (`encoding` of a file of answers) to the codec that wrote the file, such as "
        "cp1252, or save the file as UTF-8.",
        "rows.csv:7: byte 0xe9 in line 7 is not UTF-8; set data.source.encoding to what it is",
    ),
    ErrorDescription(
        "INS-D011",
        "Compressed file damaged",
        "The gz, bz2, xz or zst stream is cut off or damaged.",
        "Copy the file again and compare sizes, or compress it again.",
        "rows.csv.gz: the compressed stream is damaged (Not a gzipped file); compress it again",
    ),
    ErrorDescription(
        "INS-D012",
        "File damaged",
        "The file is not the Excel workbook, Parquet file or saved data set that its name says, or it is damaged.",
        "Write the file again with the program that made it, or export it as CSV.",
        "rows.parquet: not Parquet, or a damaged one (Parquet magic bytes not found in footer); write it again",
    ),
    ErrorDescription(
        "INS-D013",
        "Invalid CSV",
        "A quoted field is malformed. Often a quote character is part of the text, or a backslash escapes it.",
        "Set `data.source.quotes: false` if quotes have no meaning, `data.source.escape: '\\'` if a backslash escapes "
        "them, or correct the line.",
        "rows.csv:2: not CSV: a quoted field goes on after its closing quote",
    ),
    ErrorDescription(
        "INS-D014",
        "Header missing or unexpected",
        "The first line has no column names, or `data.source.header` names columns although the file has a header.",
        "Add a header line, or set `data.source.header` to the column names of a file without one. Remove it for a "
        "file with a header.",
        "rows.csv:1: the file has no header line; its first line names the columns",
    ),
    ErrorDescription(
        "INS-D015",
        "Column name occurs twice",
        "Two columns of a file have the same name, so a recipe cannot choose one.",
        "Rename one of the columns.",
        "rows.csv:1: column 'text' occurs twice; rename one",
    ),
    ErrorDescription(
        "INS-D016",
        "Invalid JSON",
        "A line or file is not JSON. The message has line and column. A file that ends early was cut off while copied.",
        "Correct the line, or write the file again.",
        "rows.jsonl:3: not JSON: Expecting ',' delimiter at column 14",
    ),
    ErrorDescription(
        "INS-D017",
        "JSON without one array of rows",
        "A JSON file needs an array of objects, or an object with one such array.",
        "Write JSONL (one object a line) or an array of objects. If the object has several arrays, keep one.",
        "rows.json:1: one array of objects is needed, but the object has several, 'may', 'june'; keep one",
    ),
    ErrorDescription(
        "INS-D018",
        "Sheet of a workbook unclear",
        "The workbook has several sheets with rows, no visible sheet, or no sheet with the name in the recipe.",
        "Set `data.source.sheet` to one of the names in the message.",
        "rows.xlsx: several sheets have rows. Set data.source.sheet; it has 'May', 'June'",
    ),
    ErrorDescription(
        "INS-D019",
        "Row or file larger than the limit",
        "A row, or the decompressed file, is larger than `data.source.max_row_mib` or `data.source.max_unpacked_mib`. "
        "The limits protect against damaged files and decompression bombs.",
        "If the file is right, set the key in the message to the value in the message, or convert the file to JSONL or "
        "CSV.",
        "rows.jsonl:5: a line of more than 8 MiB; split it, or set data.source.max_row_mib: 16",
    ),
    ErrorDescription(
        "INS-D020",
        "Text files ambiguous",
        "A folder has several .txt files. Each may be one text, a list of texts, or a table.",
        "Set `data.source.sample_by` to `document` or `line`. If the files are tables, set `delimiter` or `header`.",
        "data.source.path: /data/in has 61 .txt files. data.source.sample_by: document reads each as one text, "
        "labelled "
        "by its folder's name; sample_by: line reads each line as a text, labelled by its file's name; if they are "
        "tables, set delimiter or header",
    ),
    ErrorDescription(
        "INS-D021",
        "Column missing",
        "The file lacks a column that the recipe names in `data.columns`, `data.split`, `data.where` or `data.slices`.",
        "Correct the name in the recipe. The message has the columns of the file and the closest name.",
        "data.columns.targets[1]: there is no column 'answer'; did you mean 'answers'? (of 3 files none has it)",
    ),
    ErrorDescription(
        "INS-D022",
        "Too many unusable rows",
        "More rows than `data.max_rejected` allows have no text, no label, an unknown label or an invalid value.",
        "Read the reasons in the message and correct the file or the recipe. Raise `data.max_rejected` only if these "
        "rows may be left out.",
        "12 of 300 rows cannot be used (no_label 12); data.max_rejected is 1.00%:\n  rows.csv:7  no_label: the cell is "
        "empty",
    ),
    ErrorDescription(
        "INS-D023",
        "No row fits data.where",
        "`data.where` selects no row. Often a value is spelled differently in the file.",
        "Correct the values in `data.where`. The message shows which value occurs in no row.",
        "data.where: none of 40 rows matches:\n  data.where.status: no row has 'Closed'; did you mean 'closed'?",
    ),
    ErrorDescription(
        "INS-D024",
        "No row has a field of the schema",
        "No row has a value of any field of `task.json_schema`.",
        "Set `data.columns.target` to the column with whole records. If each field has a column, give the columns the "
        "names of the fields.",
        "no row has a value of any field of task.json_schema (total 40); set data.columns.target to the column with "
        "whole records, or name a column after each field; the columns are text, Sum",
    ),
    ErrorDescription(
        "INS-D025",
        "Fewer than two labels or answers",
        "All rows have the same label or answer, so there is nothing to learn. Often the export was filtered.",
        "Export rows of all labels, and check `data.columns.label` and `data.where`.",
        "data.columns.label: all 40 rows have the label 'refund'; two labels are the minimum. Check whether the export "
        "was filtered",
    ),
    ErrorDescription(
        "INS-D026",
        "Labels with too few rows",
        "A label has too few rows to be in train and in test, or fewer than `data.rare_labels.min_rows`.",
        "Merge the label into another (`data.rare_labels.do: merge`), drop its rows (`do: drop`), or add rows.",
        "data.rare_labels: 2 labels of fewer than 10 rows, 9 rows in all ('Fax' 5, 'telex' 4)",
    ),
    ErrorDescription(
        "INS-D027",
        "Split without rows",
        "No rows are left for train, validation or test after rows were rejected, filtered and de-duplicated.",
        "Add rows, or raise the share of that split in `data.split`. The message has the number of rows by reason.",
        "no rows are left for test: 12 were read (duplicate 8); see data.split",
    ),
    ErrorDescription(
        "INS-D028",
        "Id used twice",
        "Two rows have the same value in `data.columns.id`.",
        "Correct the ids. Without `data.columns.id` insource numbers the rows itself.",
        "rows.csv:9: id 'a7' is used at rows.csv:3 already; ids must be unique. Correct it, or leave data.columns.id "
        "out",
    ),
    ErrorDescription(
        "INS-D029",
        "Same text with different answers",
        "Rows have the same text and different answers, and `data.conflicts` is `fail`.",
        "Correct the rows, or set `data.conflicts` to `drop` or `majority`.",
        "rows.csv:5, rows.csv:9: 1 texts have several answers, this one 'billing', 'refund'; correct the rows, or set "
        "data.conflicts to drop or majority",
    ),
    ErrorDescription(
        "INS-D030",
        "Split by time impossible",
        "`data.split.cut` is not a time, or all rows are on one side of it.",
        "Set `data.split.cut` to an ISO 8601 time inside the range of the column in `data.split.time`.",
        "data.split.time: no row is before 2026-03-01T00:00:00Z, where test begins; set data.split.cut",
    ),
    ErrorDescription(
        "INS-D031",
        "Rows longer than a limit",
        "A train row has more tokens than `train.max_length` or than the context of the base.",
        "Raise `train.max_length` (needs more memory), shorten the rows, or set `data.too_long: drop`.",
        "rows.csv:5: 3 train rows are longer than train.max_length (512 tokens), this one 903; raise "
        "train.max_length, or set data.too_long: drop",
    ),
    ErrorDescription(
        "INS-D032",
        "Prompt leaves no room for an input",
        "Instruction, labels and schema alone are as long as `train.max_length` or `serve.max_model_len`.",
        "Raise the key in the message, or shorten the instruction and the label descriptions.",
        "train.max_length: given 64 tokens, but the prompt without an input has 120 (its instruction and 20 labels); "
        "raise train.max_length above that, or shorten the prompt",
    ),
    ErrorDescription(
        "INS-D033",
        "Prepared data changed",
        "A file below `.data/` differs from its hash in data.json, so results would belong to other rows.",
        "Remove the folder in the message, and run `make data` or `make train` again.",
        "runs/tickets/1/data/test.jsonl was changed after data preparation; run `make data` again",
    ),
    ErrorDescription(
        "INS-D034",
        "Test row in another split",
        "A row of train, validation or calibration has the text of a test row, so scores would be too high.",
        "Run `make data` again; it removes such rows. Do not edit prepared files.",
        "3 rows of train have the text of a test row, the first is r17: scores would be too high; prepare the data "
        "again (`make data`)",
    ),
    ErrorDescription(
        "INS-D035",
        "Format of the import unknown",
        "`make import` reads fine-tuning files of OpenAI and Azure, DPO pairs, logs of API calls and OpenTelemetry "
        "spans. The rows have other keys, or the files have different formats.",
        "Convert the file to one of these formats, or copy a recipe and name the columns in `data.columns`.",
        "log.jsonl is a log of API calls, but the other file is OpenAI fine-tuning; give files of one format",
    ),
    ErrorDescription(
        "INS-D036",
        "Too few rows to import",
        "Too few rows, or less than half of them, can be used for a recipe.",
        "Read the reasons in the message. Give a file with more rows.",
        "3 rows can be used; a recipe needs at least 10",
    ),
    ErrorDescription(
        "INS-D037",
        "Several system messages",
        "The rows have different system messages, and a recipe has one instruction.",
        "Choose one with `SYSTEM=<number>`; the message lists them. Import each task into a recipe of its own.",
        "900 rows have 3 different system messages, and a recipe has one instruction: these are several tasks, or the "
        "message has text that varies (a date, a name). Choose one:\n  SYSTEM=1  500 rows  Classify the ticket.",
    ),
    ErrorDescription(
        "INS-D038",
        "No recipe from these rows",
        "The imported rows or the given model would make an invalid recipe.",
        "Correct the rows or the arguments that the message names, or copy a recipe from `recipes/`.",
        "no recipe can be made of these rows: compare.baselines.0: Value error",
    ),
    ErrorDescription(
        "INS-D039",
        "No row for the teacher",
        "No row of `data.teacher.source` can be labelled: each one cannot be used, or repeats a row that is labelled.",
        "Name a source with other rows, or leave `data.teacher` out.",
        "data.teacher.source: none of 40 rows can be labelled; the others repeat labelled rows",
    ),
)
