"""Breaks the protocol on purpose, in many small ways, and counts those that the simulator finds.

A *mutant* is the product with one thing broken: a condition of a statement on the table
(`conditions`), or the order of two steps (`ordering`). ``python -m tests.simulator.mutants`` makes
every mutant, and fails if the simulator finds too few.

A run depends on its seed alone. So a mutant's run is the same as the unbroken one up to the first
write that only the mutant's condition lets through. One *screening* run per seed (`screening`)
therefore tries all mutants of a statement on each row that the statement met. A seed in which a
mutant never differs can't find it, and isn't run. Where it differs, the row that it would have
left is compared with the rules of `tests.simulator.rules`: most mutants are found there, without a
run of their own. The others run on the seeds in which they differ (`hunt`).
"""
