"""`python -m t5ts`: list the commands."""

COMMANDS = {
    "run": "one run, or several with --multirun",
    "report": "say from run directories whether pretraining helps",
    "predict": "forecast with a finished run",
    "export": "write a finished run's model for others to load",
    "download": "fetch, list and verify pretrained weights and data",
    "dashboard": "save the W&B view of a project",
}

if __name__ == "__main__":
    for name, words in COMMANDS.items():
        print(f"python -m t5ts.{name:<10} {words}")
    print("Each explains itself with --help.")
