"""residual_cnn: a small ResNet on MNIST, exported with torch's tracing exporter.

python models/make/residual_cnn.py    # torch==2.13.0 onnx==1.23.2 scikit-learn==1.9.1, 3 minutes on one core
"""

from __future__ import annotations

import torch
import training
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, as in ResNet-18."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Identity()
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w] to [n, width, h / stride, w / stride]."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.downsample(x))


def residual_cnn() -> nn.Module:
    """[n, 1, 28, 28] to [n, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        BasicBlock(32, 32),
        BasicBlock(32, 32),
        BasicBlock(32, 64, 2),
        BasicBlock(64, 64),
        BasicBlock(64, 96, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


if __name__ == "__main__":
    model = training.train(residual_cnn(), epochs=8)
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 28, 28),),
        str(training.data.MAKE.parent / "residual_cnn.onnx"),
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
