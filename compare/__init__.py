"""Can the owned model take over: systems, answers, scores and their intervals, cost, verdict, report."""
