"""Brevitas (PyTorch): layers with quantizers as classes; 8 bits in the first and the last."""

import brevitas.nn as qnn
import numpy as np
import torch
from brevitas.quant import Int8WeightPerTensorFloatMSE, SignedTernaryWeightPerTensorConst, Uint8ActPerTensorFloat
from torch import nn
from torch.nn import functional

from benchmarks.peer.task import absent, arguments, reported

COLLECT = 30  # steps that activations' ranges are taken from before they are learned; the default of 300 is longer than the run


def conv_of(variant):
    """Makes a convolution of its variant; None is float."""

    def conv(before, filters, size, strides, variant=variant):
        shape = {"stride": strides, "padding": 0, "bias": False}
        if variant is None:
            return nn.Conv2d(before, filters, size, **shape)
        if variant == "ternary":
            return qnn.QuantConv2d(before, filters, size, weight_quant=SignedTernaryWeightPerTensorConst, **shape)
        return qnn.QuantConv2d(before, filters, size, weight_quant=Int8WeightPerTensorFloatMSE, weight_bit_width=int(variant), **shape)

    return conv


def relu_of(variant):
    if variant is None:
        return nn.ReLU
    bits = 8 if variant == "ternary" else int(variant)
    return lambda: qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=bits, collect_stats_steps=COLLECT)


def same(x, size, strides):
    """TensorFlow's padding "same"."""
    if size == 1:
        return x
    return functional.pad(x, (1, 1, 1, 1) if strides == 1 else (0, 1, 0, 1))


class Normed(nn.Module):
    """A convolution and its BatchNorm."""

    def __init__(self, conv, before, filters, size, strides):
        super().__init__()
        self.conv, self.bn = conv(before, filters, size, strides), nn.BatchNorm2d(filters, eps=1e-5, momentum=0.1)
        self.size, self.strides = size, strides

    def forward(self, x):
        return self.bn(self.conv(same(x, self.size, self.strides)))


class Block(nn.Module):
    def __init__(self, conv, relu, before, filters, strides):
        super().__init__()
        self.first, self.second = Normed(conv, before, filters, 3, strides), Normed(conv, filters, filters, 3, 1)
        self.shortcut = Normed(conv, before, filters, 1, strides) if strides != 1 else None
        self.relu1, self.relu2 = relu(), relu()

    def forward(self, x):
        y = self.second(self.relu1(self.first(x)))
        return self.relu2(y + (self.shortcut(x) if self.shortcut else x))


class Resnet20(nn.Module):
    def __init__(self, variant):
        super().__init__()
        conv, relu = conv_of(variant), relu_of(variant)
        ends = conv_of(variant and "8")
        self.stem, self.relu = Normed(ends, 3, 16, 3, 1), relu()
        blocks, before = {}, 16
        for stage in range(3):
            for number in range(3):
                filters = 16 * 2**stage
                blocks[f"stage{stage + 1}_block{number + 1}"] = Block(conv, relu, before, filters, 2 if stage and not number else 1)
                before = filters
        self.blocks = nn.ModuleDict(blocks)
        self.dense = nn.Linear(64, 10) if variant is None else qnn.QuantLinear(64, 10, bias=True, weight_quant=Int8WeightPerTensorFloatMSE)

    def forward(self, x):
        x = self.relu(self.stem(x))
        for block in self.blocks.values():
            x = block(x)
        return self.dense(x.mean((2, 3)))

    def load(self, weights):
        def tensor(name):
            return torch.from_numpy(np.ascontiguousarray(weights[name]))

        def normed(module, conv, bn):
            module.conv.weight.data = tensor(f"{conv}/kernel").permute(3, 2, 0, 1).contiguous()
            for mine, theirs in {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}.items():
                getattr(module.bn, mine).data = tensor(f"{bn}_bn/{theirs}")

        normed(self.stem, "conv", "conv")
        for name, block in self.blocks.items():
            normed(block.first, f"{name}_conv1", f"{name}_1")
            normed(block.second, f"{name}_conv2", f"{name}_2")
            if block.shortcut:
                normed(block.shortcut, f"{name}_shortcut", f"{name}_s")
        self.dense.weight.data, self.dense.bias.data = tensor("logits/kernel").T.contiguous(), tensor("logits/bias")
        return self


def pixels(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def forward(model):
    def logits_of(images):
        model.eval()
        with torch.no_grad():
            return model(pixels(images)).numpy()

    return logits_of


task, variant = arguments()
if variant == "float KD":
    absent("distillation")
task.check(forward(Resnet20(None).load(task.weights())))
model = Resnet20(variant).load(task.weights())
optimizer = torch.optim.SGD(model.parameters(), task.rate, momentum=0.9, nesterov=True)


def step(images, labels, rate):
    model.train()
    optimizer.param_groups[0]["lr"] = rate
    loss = functional.cross_entropy(model(pixels(images)), torch.from_numpy(labels.astype(np.int64)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()


reported({"step_ms": task.train(step), "accuracy": task.accuracy(forward(model)), "no_file": "an exporter to TFLite: ONNX is what it writes"})
