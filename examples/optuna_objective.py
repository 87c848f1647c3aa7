"""Our pruner in an Optuna study of one's own: the data, the network and the loop are yours.

    python examples/optuna_objective.py

runs twelve trials, of a second or two each. docs/how-to/pruners.md says what else may be reported. The sentences are
made up: five of eight glosses, each of them twelve features that last for a while, with noise.
"""

import sys

import optuna
import torch
from torch import nn

from model.decode import greedy_decode
from model.floors import constant_sentence
from model.metrics import word_errors
from sweeps.optuna_pruners import CTCPruner

EPOCHS, FRAMES, GLOSSES = 15, 50, 8


def sentences(count, seed):
    random = torch.Generator().manual_seed(seed)
    signs = torch.randn(GLOSSES + 1, 12, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(1, GLOSSES + 1, (count, 5), generator=random)
    spans = torch.rand(count, 5, generator=random) + 0.5
    ends = (spans.cumsum(1) / spans.sum(1, keepdim=True) * FRAMES)[:, None]  # (N, 1, 5)
    now = (torch.arange(FRAMES)[:, None] >= ends).sum(2).clamp(max=4)  # (N, T): which of the five
    features = signs[targets.gather(1, now)].transpose(1, 2)  # (N, 12, T)
    return features + 0.5 * torch.randn(features.shape, generator=random), targets


def words(rows):
    return [" ".join(f"gloss{index}" for index in row) for row in rows]


TRAIN, DEV = sentences(128, seed=1), sentences(64, seed=2)
_, constant_wer = constant_sentence(words(TRAIN[1].tolist()), words(DEV[1].tolist()))
pruner = CTCPruner(constant_wer, epochs=EPOCHS, rename={"lr": "learning_rate"})


def ctc_loss(log_probs, targets):
    """Nats per gloss; log_probs (B, V, T)."""
    count = len(targets)
    return nn.functional.ctc_loss(
        log_probs.permute(2, 0, 1), targets, torch.full((count,), FRAMES), torch.full((count,), 5)
    )


def objective(trial):
    lr = trial.suggest_float("lr", 1e-5, 3e-2, log=True)
    torch.manual_seed(trial.number)
    network = nn.Sequential(nn.Conv1d(12, 64, 9, padding=4), nn.ReLU(), nn.Conv1d(64, GLOSSES + 1, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr)
    best, step, lr_time = 1.0, 0, 0.0
    for epoch in range(1, EPOCHS + 1):
        for features, targets in zip(TRAIN[0].split(4), TRAIN[1].split(4), strict=True):
            optimizer.zero_grad()
            ctc_loss(network(features).log_softmax(1), targets).backward()
            optimizer.step()
            step, lr_time = step + 1, lr_time + lr
        with torch.no_grad():
            log_probs = network(DEV[0]).log_softmax(1)
        hypotheses, _ = greedy_decode(log_probs.transpose(1, 2), torch.full((64,), FRAMES))
        wer = word_errors(words(DEV[1].tolist()), words(hypotheses)).wer
        metrics = {"dev/wer": wer, "dev/loss": ctc_loss(log_probs, DEV[1])}
        pruner.report(trial, metrics, epoch=epoch, step=step, lr_time=lr_time)
        best = min(best, wer)
        if trial.should_prune():
            raise optuna.TrialPruned(pruner.why(trial))
    return best


if __name__ == "__main__":
    torch.set_num_threads(1)
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=int(sys.argv[1]) if len(sys.argv) > 1 else 12)
    for trial in study.trials:
        print(f"{trial.number} lr {trial.params['lr']:.1e} {trial.state.name} {trial.value:.1%} {pruner.why(trial)}")
