"""depthwise_cnn: a small MobileNetV2 on MNIST, exported with torch's torch.export exporter.

python models/make/depthwise_cnn.py       # torch==2.13.0 onnxscript==0.7.2 onnx==1.23.2 scikit-learn==1.9.1,
                                          # 3 minutes on one core
"""

from __future__ import annotations

import torch
import training
from torch import nn


def convolution(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, batch norm, ReLU6."""
    return [
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
    ]


class InvertedResidual(nn.Module):
    """Widen by a 1x1 filter, filter every channel by itself, narrow again; a shortcut if shapes fit."""

    def __init__(self, channels: int, width: int, stride: int = 1, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.shortcut = stride == 1 and channels == width
        self.conv = nn.Sequential(
            *convolution(channels, hidden, 1),
            *convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, channels, h, w] to [n, width, h / stride, w / stride]."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


class DepthwiseCNN(nn.Module):
    """[n, 1, 28, 28] to [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *convolution(1, 16, 3, 2),
            InvertedResidual(16, 24),
            InvertedResidual(24, 24),
            InvertedResidual(24, 40, 2),
            InvertedResidual(40, 40),
            InvertedResidual(40, 64),
            InvertedResidual(64, 64),
            *convolution(64, 192, 1),
        )
        self.classifier = nn.Linear(192, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        return self.classifier(self.features(image).mean((2, 3)))


if __name__ == "__main__":
    model = training.train(DepthwiseCNN(), epochs=10)
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 28, 28),),
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=18,
        dynamo=True,
    )
    training.save(program.model_proto, "depthwise_cnn")
