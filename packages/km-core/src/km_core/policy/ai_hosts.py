"""
Hosts that serve model calls for money.

While a dollar ceiling is set, such a host is either metered or refused: a broad suffix such as
``.amazonaws.com`` must not open a way to spend that nobody counts (spec/network.md section 4.5).
The list is data: names of public model APIs, collected from the vendors' own documentation.
"""

from __future__ import annotations

_NAMES: dict[str, str] = {
    "api.anthropic.com": "anthropic",
    "claude.ai": "anthropic",
    "api.openai.com": "openai",
    "eu.api.openai.com": "openai",
    "us.api.openai.com": "openai",
    "chatgpt.com": "openai",
    "generativelanguage.googleapis.com": "google",
    "aiplatform.googleapis.com": "google",
    "cloudcode-pa.googleapis.com": "google",
    "models.github.ai": "github",
    "api.mistral.ai": "mistral",
    "codestral.mistral.ai": "mistral",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "api.groq.com": "groq",
    "api.x.ai": "xai",
    "api.deepseek.com": "deepseek",
    "openrouter.ai": "openrouter",
    "api.together.xyz": "together",
    "api.together.ai": "together",
    "api.fireworks.ai": "fireworks",
    "api.perplexity.ai": "perplexity",
    "api.replicate.com": "replicate",
    "api-inference.huggingface.co": "huggingface",
    "router.huggingface.co": "huggingface",
    "api.ai21.com": "ai21",
    "api.cerebras.ai": "cerebras",
    "api.sambanova.ai": "sambanova",
    "api.moonshot.ai": "moonshot",
    "api.moonshot.cn": "moonshot",
    "dashscope.aliyuncs.com": "alibaba",
    "dashscope-intl.aliyuncs.com": "alibaba",
    "dashscope-us.aliyuncs.com": "alibaba",
    "open.bigmodel.cn": "zhipu",
    "api.z.ai": "zhipu",
    "api.minimax.io": "minimax",
    "api.minimax.chat": "minimax",
    "api.voyageai.com": "voyage",
    "api.jina.ai": "jina",
    "integrate.api.nvidia.com": "nvidia",
    "ai.api.nvidia.com": "nvidia",
    "api.deepinfra.com": "deepinfra",
    "api.novita.ai": "novita",
    "api.hyperbolic.xyz": "hyperbolic",
    "api.stability.ai": "stability",
    "api.elevenlabs.io": "elevenlabs",
    "gateway.ai.cloudflare.com": "cloudflare",
    "ai-gateway.vercel.sh": "vercel",
    "api.lambda.ai": "lambda",
    "api.baseten.co": "baseten",
    "inference.baseten.co": "baseten",
}

_SUFFIXES: dict[str, str] = {
    "api.openai.com": "openai",
    "openai.azure.com": "azure",
    "openai.azure.us": "azure",
    "cognitiveservices.azure.com": "azure",
    "services.ai.azure.com": "azure",
    "inference.ai.azure.com": "azure",
    "models.ai.azure.com": "azure",
    "inference.ml.azure.com": "azure",
    "githubcopilot.com": "github",
    "endpoints.huggingface.cloud": "huggingface",
    "aiplatform.googleapis.com": "google",
    "prediction.vertexai.goog": "google",
    "api.baseten.co": "baseten",
}

_AWS_SUFFIXES = (
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.aws",
    ".api.amazonwebservices.com.cn",
    ".api.amazonwebservices.eu",
)
_GOOGLE_REGIONAL = "-aiplatform.googleapis.com"


def ai_vendor(name: str) -> str | None:
    """
    Return the vendor when *name* (canonical) is a host that serves model calls, else None.

    Bedrock is recognised by label, whatever the region, FIPS, dual-stack or VPC-endpoint form; its
    control plane counts too, since it starts batch jobs.
    """
    vendor = _NAMES.get(name)
    if vendor is not None:
        return vendor
    at = name.find(".")
    while at >= 0:
        parent = name[at + 1 :]
        vendor = _SUFFIXES.get(parent)
        if vendor is not None:
            return vendor
        at = name.find(".", at + 1)
    if name.endswith(_GOOGLE_REGIONAL):
        return "google"
    if name.endswith(_AWS_SUFFIXES):
        labels = name.split(".")
        if any(label.startswith("bedrock") for label in labels):
            return "bedrock"
        if any(label.startswith("sagemaker") for label in labels) and any(
            label.startswith("runtime") for label in labels
        ):
            return "sagemaker"
    return None
