"""A real open_clip model, random weights, trained with past features as further negatives."""

from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import torch

from sede_kernels.integrations.open_clip import ClipLoss


def main() -> None:
    """A few steps of the trainer's loop, a checkpoint, and the same bank again."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
        text_cfg={"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 2},
        output_dict=True,
    )
    loss = ClipLoss(bank_size=64, dim=32, hardness=2.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, texts = torch.randn(48, 3, 32, 32), torch.randint(1, 64, (48, 8))
    for step in range(9):
        ids = torch.arange(16) + 16 * (step % 3)
        losses = loss(**model(images[ids], texts[ids]), output_dict=True, ids=ids)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if step % 4 == 0:
            print(f"step {step}  contrastive_loss {total.item():.4f}  stored {len(loss.text_bank)}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "epoch_1.pt"
        torch.save({"state_dict": model.state_dict(), "loss": loss.state_dict()}, path)
        resumed = ClipLoss(bank_size=64, dim=32, hardness=2.0)
        resumed.load_state_dict(torch.load(path, weights_only=True)["loss"])
    print("resumed with", len(resumed.text_bank), "stored texts")


if __name__ == "__main__":
    main()
