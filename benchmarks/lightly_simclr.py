"""SimCLR as lightly's documentation writes it, for ``start.py`` and ``end.py`` to time.

    python lightly_simclr.py FOLDER DONE STEM SIZE BATCH STEPS

Two workers, as in selfsame's run. DONE is written after the last step. STEM is "imagenet", as
documented, or "cifar", as lightly's benchmarks of CIFAR-10 have it: a first convolution of 3x3 and
no pooling. As there, views of 32 px are not blurred.
"""

import sys
from pathlib import Path

import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn


class SimCLR(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


def main():
    resnet = torchvision.models.resnet18()
    if sys.argv[3] == "cifar":
        resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
    model = SimCLR(nn.Sequential(*list(resnet.children())[:-1]))
    size, batch, steps = map(int, sys.argv[4:])
    transform = SimCLRTransform(input_size=size, gaussian_blur=0.0 if size == 32 else 0.5)
    loader = torch.utils.data.DataLoader(
        LightlyDataset(sys.argv[1], transform=transform),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=2,
    )
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    done = 0
    while done < steps:
        for (x0, x1), _, _ in loader:
            loss = criterion(model(x0), model(x1))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                break
    Path(sys.argv[2]).write_text("done\n")


if __name__ == "__main__":
    main()
