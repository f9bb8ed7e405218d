"""lstm: a two-layer LSTM that reads MNIST's digits row by row, exported with torch's tracing exporter.

python models/make/lstm.py    # torch==2.13.0 onnx==1.23.2 scikit-learn==1.9.1, 1.5 minutes on one core
"""

from __future__ import annotations

import torch
import training
from torch import nn


class RowReader(nn.Module):
    """[n, rows, 28] to log probabilities [n, 10]; the number of rows is free."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, hidden, num_layers=2, batch_first=True)
        self.norm = nn.LayerNorm(hidden)
        self.fc = nn.Linear(hidden, 10)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """Log probabilities from the last time step."""
        states, _ = self.lstm(sequence)
        return torch.log_softmax(self.fc(self.norm(states[:, -1])), -1)


if __name__ == "__main__":
    model = training.train(RowReader(), epochs=14, prepare=lambda images: images[:, 0])
    torch.onnx.export(
        model,
        (torch.zeros(2, 28, 28),),
        str(training.data.MAKE.parent / "lstm.onnx"),
        input_names=["sequence"],
        output_names=["log_probs"],
        dynamic_axes={"sequence": {0: "batch", 1: "rows"}, "log_probs": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
