"""The names of all error codes. A new code needs an entry in a module of this package too; a test checks that.

The letter is the area: R recipe and call, D data, T training, E export and serving, C comparison, A API models and
budgets, G gateway and deployment, P prediction, X machine and environment. A code keeps its meaning; the number of a
removed code is not used again.
"""

from typing import Literal

ErrorCode = Literal[
    "INS-R001", "INS-R002", "INS-R003", "INS-R004", "INS-R005", "INS-R006", "INS-R007", "INS-R008", "INS-R009",
    "INS-R010", "INS-R011", "INS-R012", "INS-R013", "INS-R014", "INS-R015", "INS-R016",
    "INS-D001", "INS-D002", "INS-D003", "INS-D004", "INS-D005", "INS-D006", "INS-D007", "INS-D008", "INS-D009",
    "INS-D010", "INS-D011", "INS-D012", "INS-D013", "INS-D014", "INS-D015", "INS-D016", "INS-D017", "INS-D018",
    "INS-D019", "INS-D020", "INS-D021", "INS-D022", "INS-D023", "INS-D024", "INS-D025", "INS-D026", "INS-D027",
    "INS-D028", "INS-D029", "INS-D030", "INS-D031", "INS-D032", "INS-D033", "INS-D034", "INS-D035", "INS-D036",
    "INS-D037", "INS-D038", "INS-D039",
    "INS-T001", "INS-T002", "INS-T003", "INS-T004", "INS-T005", "INS-T006", "INS-T007", "INS-T008", "INS-T009",
    "INS-T010", "INS-T011", "INS-T012", "INS-T013", "INS-T014", "INS-T015", "INS-T016", "INS-T017", "INS-T018",
    "INS-T019",
    "INS-E001", "INS-E002", "INS-E003", "INS-E004", "INS-E005", "INS-E006", "INS-E007", "INS-E008", "INS-E009",
    "INS-E010", "INS-E011", "INS-E012", "INS-E013", "INS-E014", "INS-E015", "INS-E016",
    "INS-C001", "INS-C002", "INS-C003", "INS-C004", "INS-C005", "INS-C006", "INS-C007", "INS-C008", "INS-C009",
    "INS-C010", "INS-C011", "INS-C012", "INS-C013", "INS-C014",
    "INS-A001", "INS-A002", "INS-A003", "INS-A004", "INS-A005", "INS-A006", "INS-A007", "INS-A008", "INS-A009",
    "INS-A010",
    "INS-G001", "INS-G002", "INS-G003", "INS-G004", "INS-G005", "INS-G006", "INS-G007", "INS-G008", "INS-G009",
    "INS-G010",
    "INS-P001", "INS-P002", "INS-P003", "INS-P004", "INS-P005", "INS-P006", "INS-P007", "INS-P008", "INS-P009",
    "INS-P010", "INS-P011", "INS-P012", "INS-P013", "INS-P014", "INS-P015",
    "INS-X001", "INS-X002", "INS-X003", "INS-X004", "INS-X005", "INS-X006", "INS-X007", "INS-X008", "INS-X009",
    "INS-X010",
]  # fmt: skip
