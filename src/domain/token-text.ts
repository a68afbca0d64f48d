/**
 * What has the form of a token (contract §2), whatever its checksum: to leave out too much does no harm. All its parts
 * are bounded, so that its cost is by the length of the text alone.
 */
const TOKEN_LIKE = /[A-Za-z0-9]{1,16}_[A-Za-z0-9]{1,16}_[0-9A-Za-z]{66,}/g;
const ELLIPSIS = '…';

/** The text without what looks like a token. */
export function hideTokens(text: string): string {
  return text.replace(TOKEN_LIKE, ELLIPSIS);
}

/** Whether anything in the text looks like a token. */
export function holdsToken(text: string): boolean {
  return hideTokens(text) !== text;
}
