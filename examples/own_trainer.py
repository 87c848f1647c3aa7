"""A trainer of one's own, in plain torch: one hidden layer over a window of 24 frames.

    sweeps run examples/demo.yaml --trainer examples/own_trainer.py:WindowTrainer

docs/how-to/own-trainer.md says what each part is there for.
"""

from copy import deepcopy

import torch
from torch import nn

from model.corpus.data import Corpus, epoch_order, make_batch
from model.decode import greedy_decode
from model.metrics import word_errors
from model.schedule import learning_rate_at
from model.types import EpochReport, Stopped, TrainingConfig, mixed_seed


class WindowTrainer:
    def __init__(self, config: TrainingConfig, corpus: Corpus) -> None:
        self.config, self.corpus, self.epoch, self.step, self.dev_losses = config, corpus, 0, 0, []
        torch.set_num_threads(config.threads)  # workers share the processor
        torch.manual_seed(mixed_seed(config.seed, "weights"))
        window = nn.Conv1d(corpus.width, config.hidden, kernel_size=24, stride=4, padding=10)  # T frames to T // 4
        classes = nn.Conv1d(config.hidden, len(corpus.vocabulary), kernel_size=1)
        self.model = nn.Sequential(window, nn.ReLU(), nn.Dropout(config.dropout), classes)
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def forward(self, split, rows):
        batch = make_batch(split, rows)
        log_probs = self.model(torch.from_numpy(batch.features).transpose(1, 2)).transpose(1, 2).log_softmax(2)
        lengths, targets, counts = map(torch.from_numpy, (batch.lengths // 4, batch.targets, batch.target_lengths))
        loss = nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, lengths, counts, reduction="sum")
        return loss / counts.sum(), greedy_decode(log_probs, lengths)[0]

    def train_epoch(self, should_stop) -> EpochReport:
        train, dev, words = self.corpus.train, self.corpus.dev, self.corpus.vocabulary
        torch.manual_seed(mixed_seed(self.config.seed, "dropout", self.epoch))
        order = epoch_order(len(train), self.config.data_seed, self.epoch + 1)
        batches = torch.from_numpy(order[train.fits(4)[order]]).split(self.config.batch_size)
        self.model.train()
        for rows in batches:
            if should_stop():
                raise Stopped
            rate = learning_rate_at(self.step, len(batches), self.dev_losses, self.config)
            self.optimizer.param_groups[0]["lr"] = rate
            self.optimizer.zero_grad()
            self.forward(train, rows)[0].backward()
            self.optimizer.step()
            self.step += 1
        self.model.eval()
        with torch.no_grad():
            loss, hypotheses = self.forward(dev, range(len(dev)))
        wer = word_errors(dev.references, [" ".join(words.decode(h)) for h in hypotheses]).wer
        self.dev_losses.append(loss.item())
        self.epoch += 1
        return EpochReport(self.epoch, self.step, {"dev/loss": loss.item(), "dev/wer": wer, "optim/lr": rate})

    def state_dict(self):
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**parts, "epoch": self.epoch, "step": self.step, "dev_losses": list(self.dev_losses)}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))  # torch would share the other's tensors
        self.epoch, self.step, self.dev_losses = state["epoch"], state["step"], list(state["dev_losses"])
