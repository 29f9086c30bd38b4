"""Arrays that the published code gave, and what draws its weights and episodes; see README.md."""
