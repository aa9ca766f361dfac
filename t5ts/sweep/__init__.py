"""Sweeps: an Optuna study that prunes, resumes, and is shared by workers that never wait.

`settings` is the sweeper's schema, `space` what may be tried, `storage` and `studies` where it is
kept, `ledger` who does which trial. `worker` does trials, `pool` holds the workers of this machine,
`coordinator` runs a sweep and `display` prints it.
"""
