// The HTTP API: JSON in and out, problems as errors with the server's own reason.
import { signedOut, signOut, token } from "./session";

const ROOT = "/api/v1";

export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
  ) {
    super(detail);
  }
}

export type Params = Record<string, string | number | undefined>;

interface Request {
  method?: string;
  params?: Params;
  body?: unknown;
  bytes?: Blob;
  etag?: string | undefined;
  signal?: AbortSignal;
}

export function headers(): Record<string, string> {
  return token.value ? { Authorization: `Bearer ${token.value}` } : {};
}

export function address(path: string, params: Params = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined && value !== "") query.set(name, String(value));
  }
  const text = query.toString();
  return ROOT + path + (text ? `?${text}` : "");
}

export async function ask(path: string, request: Request = {}): Promise<Response> {
  const { method = "GET", params, body, bytes, etag, signal } = request;
  const sent: Record<string, string> = headers();
  if (body !== undefined) sent["Content-Type"] = "application/json";
  if (etag) sent["If-Match"] = etag;
  if (method === "POST") sent["Idempotency-Key"] = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  let response: Response;
  try {
    response = await fetch(address(path, params), {
      method,
      headers: sent,
      ...(body !== undefined ? { body: JSON.stringify(body) } : bytes ? { body: bytes } : {}),
      ...(signal ? { signal } : {}),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, "unreachable", "The server does not answer. Is it running?");
  }
  if (response.ok) return response;
  throw await problem(response);
}

export async function problem(response: Response): Promise<Problem> {
  let code = "error";
  let detail = `The server answered ${response.status}.`;
  try {
    const document = (await response.json()) as { code?: string; detail?: string };
    code = document.code ?? code;
    detail = document.detail ?? detail;
  } catch {
    // not a problem document: something between us and the server answered, and the status says all there is
  }
  // Of several requests that are refused together the first says why; without a token there is nothing to explain.
  if (response.status === 401 && signedOut.value === null) signOut(token.value ? detail : "");
  return new Problem(response.status, code, detail);
}

export async function get<T>(path: string, params: Params = {}, signal?: AbortSignal): Promise<T> {
  const response = await ask(path, { params, ...(signal ? { signal } : {}) });
  return (await response.json()) as T;
}

export async function getMarked<T>(path: string): Promise<{ value: T; etag: string | undefined }> {
  const response = await ask(path);
  return { value: (await response.json()) as T, etag: response.headers.get("ETag") ?? undefined };
}

export async function post<T>(path: string, body?: unknown, etag?: string): Promise<T> {
  const response = await ask(path, { method: "POST", body, etag });
  return (await response.json()) as T;
}

export async function put<T>(path: string, body: unknown, etag?: string): Promise<T> {
  const response = await ask(path, { method: "PUT", body, etag });
  return (await response.json()) as T;
}

export const segment = encodeURIComponent;
