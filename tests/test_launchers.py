"""The launchers' help, and every user error: one line, and nothing written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIGS = "experiments/configs"
GOLDEN = "tests/golden/run"
DIGITS = f"--config={CONFIGS}/digits.py"

# Starts the launchers in forked children of one process that has paid for the imports.
DRIVER = """
import json, os, runpy, sys
import absl.app, matplotlib.figure, optax.contrib, orbax.checkpoint, sklearn.datasets
from lipreg import reports, runs
sys.path.insert(0, "experiments")
for argv, out in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT), number)
        sys.argv = argv
        code = 0
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

# (the case, arguments after the script, what the one line must contain)
TRAIN, EVALUATE, CERTIFY, TABLE, DEMO, SWEEP, COMPARE = (
    f"experiments/{name}.py"
    for name in ("train", "evaluate", "certify", "table", "demo", "sweep", "compare")
)
BAD = {
    "unknown flag": (TRAIN, [f"{DIGITS}:j2", "--wrkdir={out}"], ["wrkdir"]),
    "no config": (TRAIN, ["--workdir={out}"], ["config"]),
    "no workdir": (TRAIN, [f"{DIGITS}:j2"], ["workdir"]),
    "config file that is not there": (
        TRAIN,
        ["--config=experiments/configs/nope.py", "--workdir={out}"],
        ["nope.py"],
    ),
    "unknown row": (
        TRAIN,
        [f"{DIGITS}:j9", "--workdir={out}"],
        ["train.py: No row 'j9'", "j0, j1, j2, j2_lip"],
    ),
    "unknown model after the row": (
        TRAIN,
        [f"--config={CONFIGS}/cifar10.py:j2,vgg", "--workdir={out}"],
        ["'vgg'", "cnn"],
    ),
    "strengths of one's own objective": (
        TRAIN,
        [f"{DIGITS}:lipreg.objectives:j2_lip", "--workdir={out}", "--config.strengths.lam=0.1"],
        ["config.strengths.eps = nan: it is not given, and lipreg.objectives:j2_lip needs it"],
    ),
    "module that is not there": (
        TRAIN,
        [f"{DIGITS}:my_parts:trades", "--workdir={out}"],
        ["No objective 'my_parts:trades'", "No module named 'my_parts'"],
    ),
    "processes of no address": (
        TRAIN,
        [f"{DIGITS}:j2", "--workdir={out}", "--processes=all"],
        ["--processes=all; write auto or HOST:PORT,COUNT,NUMBER"],
    ),
    "mistyped field": (
        TRAIN,
        [f"{DIGITS}:j2", "--workdir={out}", "--config.train.epoch=3"],
        ["--config.train.epoch: no such field. Did you mean train.epochs?"],
    ),
    "mistyped field that is switched off": (
        TRAIN,
        [f"{DIGITS}:j2", "--workdir={out}", "--noconfig.train.nesterow"],
        ["--config.train.nesterow: no such field. Did you mean train.nesterov?"],
    ),
    "text for a number": (
        TRAIN,
        [f"{DIGITS}:j2", "--workdir={out}", "--config.train.epochs=three"],
        ["three"],
    ),
    "fraction for a whole number": (
        TRAIN,
        [f"{DIGITS}:j2", "--workdir={out}", "--config.train.epochs=1.5"],
        ["1.5"],
    ),
    "stray argument": (
        TRAIN,
        [f"{DIGITS}:j2", "--workdir={out}", "seed=3"],
        ["'seed=3'", "--name=value"],
    ),
    "workdir that is a file": (
        TRAIN,
        [f"{DIGITS}:j2", "--workdir=setup.cfg"],
        ["--workdir=setup.cfg is"],
    ),
    "workdir with other things in it": (
        TRAIN,
        [f"{DIGITS}:j2", "--workdir=docs"],
        ["--workdir=docs is"],
    ),
    "a strength of another objective": (
        TRAIN,
        [f"{DIGITS}:j0", "--workdir={out}", "--config.strengths.eps=0.1"],
        ["eps"],
    ),
    "run that is not there": (EVALUATE, ["--run={out}"], ["not a run", "config.json"]),
    "no run": (EVALUATE, [], ["run"]),
    "unknown split": (EVALUATE, ["--run={out}", "--split=dev"], ["dev", "test|validation"]),
    "unknown protocol": (
        EVALUATE,
        ["--run={out}", "--protocol=quick"],
        ["quick", "pgd|deck|autoattack|full"],
    ),
    "no steps": (EVALUATE, ["--run={out}", "--steps=0"], ["--steps=0", "at least 1"]),
    "steps of a protocol that has its own": (
        EVALUATE,
        ["--run={out}", "--protocol=full", "--steps=9"],
        ["--steps=9", "--protocol=full", "only pgd"],
    ),
    "unknown attack": (
        EVALUATE,
        ["--run={out}", "--attack=pdg"],
        ["No attack 'pdg'; choose one of apgd, ", "package.module:name"],
    ),
    "attack of a module that is not there": (
        EVALUATE,
        ["--run={out}", "--attack=my_parts:attack"],
        ["my_parts", "cannot be imported"],
    ),
    "nothing to transfer to": (
        EVALUATE,
        ["--run={out}", "--surrogate=runs/j0"],
        ["--surrogate=runs/j0", "only deck, autoattack, full"],
    ),
    "stray argument to evaluate": (EVALUATE, ["--run={out}", "x"], ["'x'"]),
    "nothing to certify": (CERTIFY, ["--run={out}"], ["not a run", "config.json"]),
    "surrogate of another data set": (
        EVALUATE,
        [f"--run={GOLDEN}", "--protocol=deck", "--surrogate={made}/mnist"],
        ["/mnist: its config.data.name is 'mnist'", f"--run={GOLDEN} is 'digits'"],
    ),
    "config.json of something else": (
        EVALUATE,
        ["--run={made}/foreign"],
        ["foreign/config.json cannot be read: it has no data."],
    ),
    "config.json of numbers": (CERTIFY, ["--run={made}/numbers"], ["it holds no config."]),
    "about.json of something else": (
        CERTIFY,
        ["--run={made}/about"],
        ["about.json cannot be read: it says nothing about a run."],
    ),
    "config file without a config": (
        TRAIN,
        ["--config={made}/none.py", "--workdir={out}"],
        ["none.py: it defines no get_config()."],
    ),
    "config file with a name that is not defined": (
        TRAIN,
        ["--config={made}/undefined.py", "--workdir={out}"],
        ["undefined.py, line 2: NameError: name 'rate' is not defined"],
    ),
    "config file that is no Python": (
        COMPARE,
        ["--config={made}/syntax.py", "--workdir={out}"],
        ["syntax.py, line 1: SyntaxError: "],
    ),
    "config file with a number that is none": (
        TRAIN,
        ["--config={made}/number.py", "--workdir={out}"],
        ["number.py, line 2: ValueError: ", "'three'"],
    ),
    "config file that returns no config": (
        TRAIN,
        ["--config={made}/nothing.py", "--workdir={out}", "--config.seed=1"],
        ["nothing.py: get_config() returns None"],
    ),
    "config file that takes no row": (
        TRAIN,
        ["--config={made}/nothing.py:j0", "--workdir={out}"],
        ["nothing.py: TypeError: get_config() takes 0 positional arguments but 1 was given"],
    ),
    "axes that break": (
        SWEEP,
        ["--config={made}/axes.py", "--workdir={out}"],
        ["axes.py, line 4: ZeroDivisionError: division by zero"],
    ),
    "empty run": (EVALUATE, ["--run="], ["--run=: it is empty; name a folder."]),
    "a table in no norm": (TABLE, [GOLDEN, "--norms=", "--out={out}"], ["--norms=; name one"]),
    "a comparison of what is no experiment": (
        COMPARE,
        [f"--config={CONFIGS}/theory.py:clean", "--workdir={out}"],
        ["config.data.bounds is missing"],
    ),
    "a network that is none, among others": (
        SWEEP,
        [f"{DIGITS}:j2", "--workdir={out}", "--sweep=model.name=CNN,VGG"],
        ["No model 'VGG'; choose one of CNN,"],
    ),
    "a sweep in a file": (
        SWEEP,
        [f"{DIGITS}:j2", "--workdir=setup.cfg", "--sweep=seed=0:2"],
        ["setup.cfg is a file"],
    ),
    "a config without its flag": (
        TRAIN,
        [f"{CONFIGS}/digits.py:j2", "--workdir={out}"],
        ["--config is missing; --help"],
    ),
    "neither true nor false": (
        TRAIN,
        [f"{DIGITS}:j2", "--workdir={out}", "--silent=perhaps"],
        ["--silent=perhaps: it is neither true nor false"],
    ),
    "a file of flags that is not there": (TRAIN, ["--flagfile={out}/no"], ["flagfile", "/no'"]),
    "one of another program": (EVALUATE, ["--flagfile={out}/no"], ["flagfile", "/no'"]),
    "empty run of a table": (TABLE, [GOLDEN, "", "--out={out}"], ["An argument is empty"]),
    "empty config": (TRAIN, ["--config=", "--workdir={out}"], ["--config=", "no such file"]),
    "epochs and steps": (
        TRAIN,
        [f"{DIGITS}:j2", "--workdir={out}", "--config.train.epochs=2", "--config.train.steps=9"],
        ["--config.train.epochs=2", "--config.train.steps=9", "one of the two"],
    ),
    "what only another network of the flags' would tell": (
        TRAIN,
        [
            f"{DIGITS}:j2",
            "--workdir={out}",
            "--config.model.name=MLP",
            "--config.train.ema=0.9",
            "--config.train.ema_statistics=averaged",
        ],
        ["--config.train.ema_statistics=averaged; MLP keeps none"],
    ),
    "a setting that the network of the flags does not have": (
        TRAIN,
        [
            f"{DIGITS}:j2",
            "--workdir={out}",
            "--config.model.name=MLP",
            "--config.model.settings.channels=(4,)",
        ],
        ["--config.model.settings.channels=(4,)", "another network: MLP has activation,", "widths"],
    ),
    "engine of one point": (
        SWEEP,
        [f"{DIGITS}:j2", "--workdir={out}", "--sweep=seed=0:2", "--sweep_index=0", "--engine=loop"],
        ["--engine=loop", "--sweep_index"],
    ),
    "table in a file": (TABLE, [GOLDEN, "--out=setup.cfg"], ["setup.cfg is a file"]),
    "noise of nan": (CERTIFY, [f"--run={GOLDEN}", "--sigma=nan"], ["--sigma=nan", "finite"]),
    "a split of no table": (TABLE, ["{out}", "--split=dev"], ["dev", "test|validation"]),
    "negative sigma": (CERTIFY, ["--run={out}", "--sigma=-1"], ["sigma", "-1"]),
    "an index of no point": (
        SWEEP,
        [f"{DIGITS}:j2", "--workdir={out}", "--sweep=strengths.eps=0,0.4", "--sweep_index=2"],
        ["--sweep_index=2; choose one of 0 to 1."],
    ),
    "no runs": (TABLE, [], ["RUN RUN"]),
    "a table of what is no run": (TABLE, ["docs", "--out={out}"], ["docs", "not a run"]),
    "unknown recipe": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--rows=j9"],
        ["--rows=j9", "j0, weight_decay, j1"],
    ),
    "a recipe without values": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--own=j2 strengths.eps"],
        ["strengths.eps", "NAME=VALUE"],
    ),
    "a recipe without its strengths": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--trials=1", "--own=j2 name=mine"],
        ["config.strengths.eps = nan", "j2 needs it"],
    ),
    "more images than the test split has": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--rows=j0", "--examples=361"],
        ["--examples=361", "the test split has 360"],
    ),
    "seconds without an end": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--seconds=inf"],
        ["--seconds=inf: it must be finite"],
    ),
    "a seed that JAX would cut": (
        CERTIFY,
        ["--run={out}", "--seed=4294967296"],
        ["--seed=4294967296", "[0, 4294967295]"],
    ),
    "a rate of nothing": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--rows=j1", "--rates=1,0"],
        ["--rates=1,0", "greater than 0"],
    ),
    "a measurement of one's own in a comparison": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--config.report.pgd.steps=77"],
        ["--config.report.pgd.steps", "all runs are measured alike", "--norm, --eps"],
    ),
    "a radius twice in a comparison": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--eps=0.1", "--config.evaluation.linf.table=0.2"],
        ["--config.evaluation.linf.table", "all runs are measured alike"],
    ),
    "an empty recipe": (COMPARE, [DIGITS, "--workdir={out}", "--own="], ["--own=", "OBJECTIVE"]),
    "a guest that is no run": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--rows=j0", "--guests={out}-guest"],
        ["-guest is not a run", "config.json"],
    ),
    "a guest on other data": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--rows=j0", "--guests={made}/mnist"],
        ["made/mnist has config.data.name = mnist; the comparison has digits"],
    ),
    "a guest that was not trained to its end": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--rows=j0", "--guests={made}/untrained"],
        ["made/untrained was not trained to its end"],
    ),
    "a guest whose training was cut": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--rows=j0", "--guests={made}/cut"],
        ["made/cut was not trained to its end"],
    ),
    "two guests of one name": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--rows=j0", "--guests={made}/j0"],
        ["made/j0: there is another 'j0'; rename the folder"],
    ),
    "a strength that recipes set": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--rows=j2", "--config.strengths.eps=0.9"],
        ["--config.strengths.eps: every recipe sets it", "--own='OBJECTIVE strengths.eps=VALUE"],
    ),
    "axis that is near a field": (
        SWEEP,
        [f"{DIGITS}:j2", "--workdir={out}", "--sweep=train.epoch=1,2"],
        ["Axis train.epoch: no such field. Did you mean train.epochs?"],
    ),
    "no radius": (
        COMPARE,
        [DIGITS, "--workdir={out}", "--eps=0"],
        ["--eps=0.0; it must be greater than 0, and finite"],
    ),
    "no seeds": (DEMO, ["--workdir={out}", "--seeds=0"], ["--seeds=0", "at least 1"]),
}
# Values of config fields: (override, what the line must contain)
FIELDS = [
    ("model.name=VGG", ["'VGG'", "CNN", "MLP"]),
    ("model.name=CNN(classes=3)", ["--config.model.name=CNN(classes=3)", "the data has"]),
    ("model.name=CNN(head='tanh')", ["write config.model.head = tanh"]),
    ("data.name=", ["No data set ''; choose one of cifar10"]),
    ("data.side=8", ["--config.data.side=8; digits is held in memory"]),
    ("model.head=sigmoid", ["'sigmoid'", "linear", "tanh"]),
    ("model.activation=swoosh", ["'swoosh'", "relu", "softplus"]),
    ("objective=j9", ["'j9'", "j0", "j2_lip"]),
    ("objective=j0", ["strengths", "j0"]),
    ("options.norm=l3", ["'l3'", "l1, l2, linf"]),
    ("options.method=magic", ["'magic'", "attack", "penalty", "difference"]),
    ("options.method=difference(order=3)", ["No difference of order 3", "1 or 2"]),
    ("options.method=difference(h=0)", ["h = 0 of difference", "greater than 0"]),
    ("loss=smoothed_cross_entropy(smoothing=2)", ["smoothing = 2", "a number from 0 to 1"]),
    ("loss=emma(margins=(1,2))", ["margins = (1, 2); want a number, or one for each pair"]),
    ("train.optimizer=local_entropy(replicas=0)", ["local_entropy: replicas = 0", "1 or more"]),
    ("train.optimizer=awp(warmup='a')", ["awp: warmup = a"]),
    ("loss=hinge", ["'hinge'", "cross_entropy"]),
    ("train.optimizer=adan2", ["'adan2'", "sgd, adam, adamw"]),
    ("train.optimizer=lbfgs", ["'lbfgs'", "gradients and a schedule"]),
    ("train.optimizer=adam(1)", ["adam(1)", "name(option=value, ...)"]),
    ("data.name=imagenet", ["'imagenet'", "cifar10, cifar100, digits, mnist"]),
    ("data.validation=1.5", ["1.5"]),
    ("data.cutout=-1", ["-1"]),
    ("data.dir=here", ["--config.data.dir=here", "digits"]),
    ("data.threads=8", ["--config.data.threads=8", "config.data.side"]),
    ("model.settings.channels=()", ["--config.model.settings.channels=()", "one convolution"]),
    ("model.settings.channels=(0,)", ["--config.model.settings.channels=(0,)", "greater than 0"]),
    ("data.name=folder", ["'folder'", "config.data.side"]),
    ("train.schedule=linear", ["'linear'", "cosine"]),
    ("train.batch_size=100000", ["100000", "1293"]),
    ("train.batch_size=0", ["--config.train.batch_size=0"]),
    ("train.accumulate=1000", ["--config.train.accumulate=1000", "600 steps"]),
    ("train.momentum=1.0", ["--config.train.momentum=1.0"]),
    ("train.learning_rate=-1.0", ["--config.train.learning_rate=-1.0"]),
    ("strengths.eps=-0.1", ["--config.strengths.eps=-0.1"]),
    ("strengths.eps=inf", ["--config.strengths.eps=inf"]),
    ("strengths.lam=nan", ["--config.strengths.lam=nan"]),
    ("report.logs=('jsonl','mlflow')", ["mlflow", "jsonl, tensorboard, wandb"]),
    ("report.pgd.norm=l7", ["'l7'", "l1, l2, linf"]),
    ("evaluation.radii=0", ["--config.evaluation.radii=0"]),
]
for override, words in FIELDS:
    BAD[override] = (TRAIN, [f"{DIGITS}:j2_lip", "--workdir={out}", f"--config.{override}"], words)
BAD["data set that is not prepared"] = (
    TRAIN,
    [f"--config={CONFIGS}/mnist.py:j0", "--workdir={out}", "--config.data.dir={out}-none"],
    ["mnist", "download_and_prepare"],
)
PROGRAMS = sorted(f"experiments/{path.name}" for path in (ROOT / "experiments").glob("*.py"))
PROGRAMS.remove("experiments/cli.py")  # shared by the launchers
HELP = {f"{script} --help": (script, ["--help"], ()) for script in PROGRAMS}
HELP |= {f"{TRAIN} {flag}": (TRAIN, [flag], ()) for flag in ("-h", "--helpfull")}
HELP["fields of a config"] = (
    TRAIN,
    [f"{DIGITS}:j2", "--config.train.epochs=7", "--helpshort"],
    ("--config.train.epochs=7  (int)", "--config.strengths.eps=0.4  (float)"),
)


def foreign(folder: Path) -> Path:
    """Runs of another data set and files that are none of ours, where a run's should be."""
    untrained = (ROOT / GOLDEN / "config.json").read_text()
    config = json.loads(untrained)
    config["data"]["name"] = "mnist"
    texts = {
        "mnist/config.json": json.dumps(config),
        "untrained/config.json": untrained,
        "foreign/config.json": '{"seed": 0, "train": {}}',
        "numbers/config.json": '{"seed": 0, "train": 1}',
        "about/about.json": "[]",
        "none.py": "",
        "undefined.py": "def get_config():\n    return rate\n",
        "syntax.py": "def get_config(:\n",
        "number.py": "def get_config():\n    return int('three')\n",
        "nothing.py": "def get_config():\n    pass\n",
        "axes.py": "from configs.digits import get_config\n\ndef get_sweep():\n    return 1 / 0\n",
    }
    for name in ("about", "cut"):
        shutil.copytree(ROOT / GOLDEN, folder / name)
    about = json.loads((folder / "cut/about.json").read_text())
    texts["cut/about.json"] = json.dumps(about | {"steps": 2 * about["steps"]})
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def written_at(made) -> dict[Path, int]:
    """When what those calls name, but for their own folders, was written."""
    places = (ROOT / GOLDEN, ROOT / "runs" / "table", ROOT / "runs" / "demo", made)
    within = [path for place in places for path in place.rglob("*")]
    every = [*within, *places, ROOT / "setup.cfg", *(ROOT / "docs").glob("*.*")]
    return {path: path.stat().st_mtime_ns for path in every if path.exists()}


@pytest.fixture(scope="module")
def called(tmp_path_factory) -> tuple[dict[str, tuple[int, str, str, list[Path]]], list[Path]]:
    """Every such call, made once: exit code, output, error output, what was written; and what else
    was."""
    folder = tmp_path_factory.mktemp("bad")
    calls, made = [], foreign(folder / "made")
    before = written_at(made)
    for i, (script, arguments, _) in enumerate((BAD | HELP).values()):
        out = str(folder / f"run{i}")
        argv = [script, *(a.format(out=out, made=made) for a in arguments)]
        calls.append([argv, str(folder / f"log{i}")])
    environment = {k: v for k, v in os.environ.items() if k != "TFDS_DATA_DIR"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=True,
    )
    codes = [int(line) for line in done.stdout.split()]
    logs = [Path(log) for _, log in calls]
    found = {
        name: (
            codes[i],
            Path(f"{logs[i]}.stdout").read_text(),
            Path(f"{logs[i]}.stderr").read_text(),
            sorted(folder.glob(f"run{i}*")),
        )
        for i, name in enumerate(BAD | HELP)
    }
    return found, [Path(path) for path, _ in before.items() ^ written_at(made).items()]


@pytest.fixture(scope="module")
def outcomes(called):
    return called[0]


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_with_the_value_and_the_choices(case, outcomes):
    code, out, err, written = outcomes[case]
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err
    for word in BAD[case][2]:
        assert word in err
    assert written == []


@pytest.mark.parametrize("case", HELP)
def test_help_is_what_the_program_does_and_its_flags(case, outcomes):
    code, out, err, _ = outcomes[case]
    assert (code, err) == (0, "")
    script = ROOT / HELP[case][0]
    assert out.startswith(script.read_text().removeprefix('"""').splitlines()[0])
    assert "--helpfull" in out if "full" not in case else "--compile_cache" in out
    assert "\n  --" in out
    for word in HELP[case][2]:
        assert word in out


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (
            "raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 G.\\nat step')",
            "RESOURCE_EXHAUSTED: 9 G. A smaller batch_size takes less memory; --debug says where.",
        ),
        ("raise KeyboardInterrupt", "stopped."),
    ],
)
def test_what_the_device_or_the_user_ends_is_one_line(ends, said, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(f"import cli, jax\ndef main(_):\n    {ends}\ncli.run(main, resumes=False)\n")
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'experiments'}:{ROOT / 'src'}"}
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{program}: {said}\n"


def test_the_mistakes_wrote_nothing_else(called):
    outcomes, elsewhere = called
    assert elsewhere == []
    assert len(outcomes) >= 25
