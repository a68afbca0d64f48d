/**
 * A text that two JSON values share exactly if they are the same value: members are in the order of their names,
 * there is no space, and what spelling a number or a string had does not show. Its recursion is bounded by the depth
 * of what it is given, which http/body.ts bounds.
 */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_name, member: unknown) => {
    if (typeof member !== 'object' || member === null || Array.isArray(member)) return member;
    return Object.fromEntries(Object.entries(member).sort(([one], [other]) => (one < other ? -1 : 1)));
  });
}
