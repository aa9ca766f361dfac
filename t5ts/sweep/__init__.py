"""Sweeps: an Optuna study that prunes, resumes, and is shared by workers that never wait.

`settings` is the sweeper's schema, `space` the search space. `ledger` assigns an arm's trials on a
`storage`; `trial` is one of them, `worker` runs them, `pool` manages this machine's workers.
`studies` refuses and rebuilds studies, `coordinator` runs a sweep and `display` prints it.
"""
