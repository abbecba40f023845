"""A storm: random graphs with known answers, while everything that may die does.

`graphs` and `schedule` are functions of the seed alone; `server`, `workers`, `proxy` and `clients`
are what is hit; `faults` hits; `runs` reads what the tasks wrote of themselves; `storm` puts
it together, and `outcome` judges.
"""
