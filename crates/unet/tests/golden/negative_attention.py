"""Attention processors for diffusers that steer away from a negative prompt, used by the golden scripts.

One processor serves all cross-attentions: `install` replaces those of a U-Net's `attn2` and leaves self-attention alone.
"""
import torch
from diffusers.models.attention_processor import AttnProcessor

class NegativeProcessor:
    """Two plain attentions with the same queries; `combine` makes one of their outputs, heads joined, before `to_out`."""

    def __init__(self, states, combine):
        self.states, self.combine = states, combine

    def attend(self, attn, query, states):
        key, value = attn.to_k(states), attn.to_v(states)
        batch, tokens, channels = query.shape
        split = lambda x: x.view(batch, -1, attn.heads, channels // attn.heads).transpose(1, 2)
        scores = split(query) @ split(key).transpose(-1, -2) * attn.scale
        return (scores.softmax(-1) @ split(value)).transpose(1, 2).reshape(batch, tokens, channels)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **unused):
        query = attn.to_q(hidden_states)
        negative = self.states.to(query.dtype).expand(query.shape[0], -1, -1)
        mixed = self.combine(self.attend(attn, query, encoder_hidden_states), self.attend(attn, query, negative))
        return attn.to_out[1](attn.to_out[0](mixed))

def nasa(alpha):
    return lambda positive, negative: positive - alpha * negative

def nag(phi, tau, blend):
    def combine(positive, negative):
        away = positive + phi * (positive - negative)
        ratio = away.norm(p=1, dim=-1, keepdim=True) / positive.norm(p=1, dim=-1, keepdim=True)
        bounded = away * ratio.clamp(max=tau) / ratio
        return blend * bounded + (1 - blend) * positive
    return combine

def install(unet, states, combine):
    own = NegativeProcessor(states, combine)
    unet.set_attn_processor({name: own if ".attn2." in name else AttnProcessor() for name in unet.attn_processors})
