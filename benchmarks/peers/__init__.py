"""Other tools beside ours: the same items, the same Slurm cluster, and the cost of a kill -9.

`contenders` names the tools and how to start them. `programs/` has the task as an expert of each
tool would write it. `running` starts, watches and kills. `report` makes the table.
"""
