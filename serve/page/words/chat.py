"""Of the conversation, its list and its settings."""

WORDS = {
    "chat.placeholder": ("Ask about pictures", "请就图片提问"),
}
