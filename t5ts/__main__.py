"""`python -m t5ts`: list the commands."""

if __name__ == "__main__":
    for name, words in {
        "run": "one run, or several with --multirun",
        "report": "report from run directories whether pretraining helps",
        "predict": "forecast with a finished run",
        "export": "export a finished run's model for use elsewhere",
        "download": "fetch, list and verify pretrained weights and data",
        "dashboard": "save the W&B view of a project",
    }.items():
        print(f"python -m t5ts.{name:<10} {words}")
    print("Run any of them with --help for its options.")
