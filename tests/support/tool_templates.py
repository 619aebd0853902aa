"""Chat templates with tools, as the families' own are at heart."""

from __future__ import annotations

_END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

HERMES = (
    "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "</tools> as <tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}" + _END
)

QWEN3 = (
    HERMES.replace(
        "{{ m.content }}",
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content }}",
    )
    + "{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)

THINKS_AT_ONCE = HERMES + "<think>\n{# ends with </think> #}"

LLAMA3 = (
    "{% if tools %}<|python_tag|> {{ tools | tojson }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}{{ m.name }}]{{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
)

MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}"
    "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('9') }}{% endif %}"
    "[TOOL_CALLS][{{ c.function | tojson }}]{{ c.id }}{% endfor %}"
    "{% if m.tool_call_id %}for {{ m.tool_call_id }}:{% endif %}{{ m.content }}{% endfor %}"
)

EFFORT = "{{ reasoning_effort }}{% for m in messages %}{{ m.content }}{% endfor %}"

ARGUMENTS_AS_TEXT = (
    "{{ tools | length }}{% for m in messages %}{% for tool in m['tool_calls'] %}"
    "{{ 'json:' + tool['function']['arguments'] + '.' }}{% endfor %}{{ m.content }}{% endfor %}"
)
