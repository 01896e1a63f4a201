"""The discriminator: it hears audio alone, never who sings (method.md, section 2)."""

from collections.abc import Sequence

import flax.linen as nn

from svc_jax.models.layers import Conv, receptive_field


class WaveNetDiscriminator(nn.Module):
    """Scores every sample by ten dilated convolutions (Parallel WaveGAN's)."""

    channels: int = 64
    kernel_size: int = 3
    dilations: Sequence[int] = (1, 1, 2, 3, 4, 5, 6, 7, 8, 1)

    @nn.compact
    def __call__(self, audio):
        """[B, N] -> every feature map [B, N, channels]; the last: logits [B, N, 1]."""
        x = audio[..., None]
        maps = []
        for index, dilation in enumerate(self.dilations[:-1]):
            x = Conv(self.channels, self.kernel_size, dilation, name=f"layer{index}")(x)
            x = nn.leaky_relu(x, 0.2)
            maps.append(x)
        logits = Conv(1, self.kernel_size, self.dilations[-1], name="output")(x)
        return [*maps, logits]

    def receptive_field(self) -> int:
        """How many samples a score depends on."""
        return receptive_field(self.kernel_size, self.dilations)
