"""Other tools beside ours: the same items, the same Slurm cluster, and what a kill -9 costs each.

`contenders` names them and how each is started, `programs/` is how an expert of each tool writes
the task, `running` starts, watches and kills, `report` makes the table.
"""
