const PIECE_LENGTH = 20;

/** Where a piece of a token stands in a text, with what is around it. */
export function findPiece(text: string, tokens: readonly string[]): string | undefined {
  for (const token of tokens) {
    for (let start = 0; start + PIECE_LENGTH <= token.length; start++) {
      const index = text.indexOf(token.slice(start, start + PIECE_LENGTH));
      if (index >= 0) return text.slice(Math.max(0, index - 100), index + 120);
    }
  }
  return undefined;
}
