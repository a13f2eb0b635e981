"""VSE++ (and VSE-infinity) with memory banks: the hinge, then the weighted InfoNCE."""

import torch
from torch import nn

from sede_kernels.integrations.vsepp import ContrastiveLoss, i2t, t2i


def main() -> None:
    """Train two linear encoders on made-up pairs with both criteria."""
    for name, settings in (
        ("hinge", {"max_violation": True}),
        ("weighted InfoNCE", {"temperature": 0.07, "hardness": 4.0}),
    ):
        torch.manual_seed(0)
        truth = torch.randn(60, 24)
        images = truth + 0.5 * torch.randn(60, 24)
        captions = (truth.repeat_interleave(5, 0) + 0.5 * torch.randn(300, 24)) @ torch.randn(
            24, 24
        )
        img_enc, txt_enc = nn.Linear(24, 16), nn.Linear(24, 16)
        criterion = ContrastiveLoss(margin=0.2, bank_size=128, dim=16, **settings)
        optimizer = torch.optim.Adam([*img_enc.parameters(), *txt_enc.parameters()], lr=5e-3)
        for _ in range(8):
            total = 0.0
            for ids in torch.randperm(300).split(32):
                im = nn.functional.normalize(img_enc(images[ids // 5]), dim=1)
                s = nn.functional.normalize(txt_enc(captions[ids]), dim=1)
                loss = criterion(im, s, ids=ids // 5)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
        with torch.no_grad():
            im = nn.functional.normalize(img_enc(images), dim=1).repeat_interleave(5, 0)
            s = nn.functional.normalize(txt_enc(captions), dim=1)
        found, back = i2t(im, s), t2i(im, s)
        print(f"{name}: loss {total:.2f}  R@1 {found[0]:.1f} / {back[0]:.1f}")


if __name__ == "__main__":
    main()
