"""Sweeps: an Optuna study that prunes, resumes, and is shared by workers that never wait.

`space` says what may be tried, `studies` where it is kept, `ledger` who does which trial,
`worker` does trials, `coordinator` starts workers and says how it goes.
"""
