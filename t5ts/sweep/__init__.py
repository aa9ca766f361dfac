"""Sweeps: an Optuna study that prunes, resumes, and is shared by workers that never wait.

`settings` is the sweeper's schema, `space` the search space, `storage` and `studies` keep the
results, `ledger` assigns trials. `worker` runs trials, `pool` manages this machine's workers,
`coordinator` runs a sweep and `display` prints it.
"""
